"""What image segmentation is made of: rows' masks, the loss, answers as pictures, scores, drawings.

They know masks and tensors, no adapters, no bases and no files.
"""
