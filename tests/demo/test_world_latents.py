"""The world's VAE encoder is what trainings compute without it: linear, and a flat area is its colour."""

import random

import torch
from coherence.demo.training.decoder import set_encoder
from coherence.demo.world.latents import COLOUR_GAIN, encode
from coherence.demo.world.painting import paint
from coherence.demo.world.scenes import random_scene
from comfy.taesd.taesd import TAESD
