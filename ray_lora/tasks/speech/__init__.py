"""What speech recognition is made of: how wordings are compared and shown.

They know texts, no adapters, no bases and no files.
"""
