"""What sequential recommendation is made of: histories, what a request may ask, measures, pictures.

They know ids and numbers, no adapters, no bases and no files.
"""
