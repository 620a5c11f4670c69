"""The tensors of every model: images in, scores out."""

import numpy as np
from numpy.typing import NDArray

SIDE = 28
"""Rows and columns of an image."""
PIXELS = SIDE * SIDE
CLASSES = 10

Images = NDArray[np.uint8]
"""`uint8 [N, 28, 28]`: ink 0–255 on background 0."""
Scores = NDArray[np.float32]
"""`float32 [N, 10]`: logits or probabilities of the digits 0 to 9."""
Confidences = NDArray[np.float32]
"""`float32 [N]`: calibrated probability that an image shows a digit, and the predicted one."""
Accepted = NDArray[np.bool_]
"""`bool [N]`: whether the confidence reaches the model's threshold."""
