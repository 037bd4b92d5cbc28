"""Pictures whose objects stand in files beside them: COCO's json, YOLO's folders of txt files; each as rows of an image
and its objects, as Hugging Face's data sets have them.

They know file systems, names and boxes; nothing of tasks, bases or what rows are used for.
"""
