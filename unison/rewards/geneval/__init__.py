"""GenEval on pictures, for the evaluation suite and as rewards.

    rules.py   from detected objects and their colours to right or wrong, and to partial credit; pure
    detect.py  detectors of COCO's objects
    colors.py  the colour of an object in its crop
    reward.py  detect, ask for colours, decide

To add a detector, give it the form of `detect.Detector` and a case in `load_detector`; a colour model likewise.
"""
