"""Readers of the annotation formats: YouTube-VIS, COCO, VIPSeg."""
