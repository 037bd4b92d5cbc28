"""A task written by reading docs/add-a-task.md alone: it finds boxes in pictures, on a base that is nobody's."""
