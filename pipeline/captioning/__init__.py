"""Caption images with a trained run: open it, decode the captions and draw them onto the images."""
