"""How alike pictures are and how steady clips: tensors in, tensors out, nothing of ComfyUI."""
