"""Objects in pictures: found by a detector or marked by other nodes, matched to object texts, cut out and drawn.

detections.py       what was found: boxes, scores, masks
detect.py           search pictures for object texts with any detector
folder_detector.py  detectors from local Hugging Face folders
segmenter.py        segmenters from such folders: boxes to masks
box_formats.py      the box and mask formats of other nodes
boxes.py            boxes and masks of other nodes to detections or edges, and back
matching.py         which detection is which object
crops.py            objects cut out of their pictures
annotate.py         pictures with boxes, masks and labels
"""
