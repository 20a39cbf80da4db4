"""The world's VAE encoder is what trainings compute without it: linear, and a flat area is its colour."""
