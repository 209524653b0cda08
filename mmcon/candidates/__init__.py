"""Whom anchors are contrasted with beyond their own batch: other processes, a queue, a bank."""
