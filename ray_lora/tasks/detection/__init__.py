"""What object detection is made of: rows' objects, boxes on a grid, which anchors learn which object, scores, pictures.

They know boxes and tensors, no adapters, no bases and no files.
"""
