"""The one statement of how pixels enter an encoder: ImageNet mean and standard deviation on a 0-1 scale.

Source: the values torchvision's ResNet weights were trained with, which the whole field keeps.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
