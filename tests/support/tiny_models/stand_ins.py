"""Small random models under the names of the well-known ones that workflows load: same class, same kind of file.

Text encoders alone are of another class: of Qwen 3 and T5 only the full size is known, so a CLIP-L takes their place.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import adapters, dits, pictures, unets

write_controlnet = partial(adapters.write_controlnet, channels=unets.DETECTED)
IP2P = "checkpoints/instruct-pix2pix-00-22000.safetensors"
STAND_INS: dict[str, Callable[[Path], None]] = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": partial(unets.write_as_safetensors, config=unets.SD15, seed=15),
    "checkpoints/dreamshaper_8.safetensors": partial(unets.write_as_safetensors, config=unets.SD15, seed=17),
    IP2P: partial(unets.write_as_safetensors, config=unets.IP2P, seed=16),
    "controlnet/control_v11p_sd15_canny_fp16.safetensors": write_controlnet,
    "controlnet/control_v11p_sd15_openpose_fp16.safetensors": write_controlnet,
    "loras/blindbox_V1Mix.safetensors": partial(adapters.write_lora, channels=unets.DETECTED),
    "diffusion_models/flux-2-klein-4b-fp8.safetensors": pictures.write_flux2,
    "text_encoders/qwen_3_4b.safetensors": adapters.write_text_encoder_as_safetensors,
    "vae/flux2-vae.safetensors": pictures.write_flux2_vae,
    "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors": dits.write_wan21_for_clip,
    "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": partial(dits.write_wan21_for_clip, seed=26),
    "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": partial(dits.write_wan21_for_clip, seed=27),
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": adapters.write_text_encoder_as_safetensors,
    "vae/wan_2.1_vae.safetensors": dits.write_wan_vae,
}
"""kind/file → what writes it."""
