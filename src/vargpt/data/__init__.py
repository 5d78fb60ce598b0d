"""Training data: folders of images, their split, and the conversations made from them."""
