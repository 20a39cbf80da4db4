"""Runs a workflow many times with other inputs, on one server or many: what batch.py does. README.md says how."""
