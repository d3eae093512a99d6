"""Makes tests/golden/dit/narrow: what the variants leave out. Two heads of 8, so that q, k and v lie at odd places;
activations so small that the norms' epsilons count; a bf16 adapter with a rank and an alpha of its own for a layer, on
a convolution, on the embeddings and on modulation. make_dit.py has what is computed, and how.

Also positions.safetensors, rotary angles of sizes that the variants' cases do not reach.

Usage: python make_narrow.py      writes next to this file
"""
import os, shutil

import torch
import make_dit as M
from diffusers import CogVideoXPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from diffusers import CogVideoXTransformer3DModel

NAME, SMALL = "narrow", 3e-3
TARGETS = ["ff.net.2", "norm1.linear", "patch_embed.proj", "text_proj", "to_k", "to_q"]
M.V[NAME] = dict(snr=3.0)


def correctly_rounded_sinusoid(t, dim, flip_sin_to_cos, downscale_freq_shift):
    """torch.exp differs by an ulp between machines; this is what the spec says."""
    import math
    half = dim // 2
    w = torch.exp((-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).double()).float()
    angle = t[:, None].float() * w[None]
    return torch.cat([torch.cos(angle.double()), torch.sin(angle.double())], dim=-1).float()


def build(g):
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, time_embed_dim=8, text_embed_dim=8, num_layers=2, sample_height=4,
        sample_width=4, sample_frames=5, max_text_seq_length=5, spatial_interpolation_scale=2.5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            small = any(k in name for k in ("to_q", "to_k", "text_proj"))
            p.copy_((SMALL if small else 1) * M.draw(name, p, g))
    return model.eval()


def add_lora(model, g):
    model.add_adapter(LoraConfig(r=3, lora_alpha=2, target_modules=TARGETS, rank_pattern={"to_q": 2},
                                 alpha_pattern={"ff.net.2": 5}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                small = any(k in name for k in ("to_q", "to_k", "text_proj")) and "lora_B" in name
                p.copy_(((SMALL if small else 1) / p[0].numel() ** 0.5 * torch.randn(p.shape, generator=g)).bfloat16())


def main():
    M.emb_mod.get_timestep_embedding = lambda t, dim, flip_sin_to_cos, downscale_freq_shift, scale=1: (
        correctly_rounded_sinusoid(t, dim, flip_sin_to_cos, downscale_freq_shift))
    shutil.rmtree(os.path.join(M.OUT, NAME), ignore_errors=True)
    g = torch.Generator().manual_seed(66)
    model, sched = build(g), M.scheduler(NAME)
    model.save_pretrained(os.path.join(M.OUT, NAME, "transformer"))
    sched.save_pretrained(os.path.join(M.OUT, NAME, "scheduler"))
    x = {"latents": 0.8 * torch.randn(2, 2, 16, 4, 4, generator=g), "noise": torch.randn(2, 2, 16, 4, 4, generator=g),
         "text": torch.randn(2, 5, 8, generator=g), "timesteps": torch.tensor([700, 3])}
    M.save(x, NAME, "inputs.safetensors")
    for file in ("expect", "expect_lora"):
        if file == "expect_lora":
            add_lora(model, g)
            meta = _collate_lora_metadata({"transformer": model})
            meta["transformer_lora_adapter_metadata"]["target_modules"] = TARGETS
            layers = {k: t.bfloat16() for k, t in get_peft_model_state_dict(model).items()}
            CogVideoXPipeline.save_lora_weights(os.path.join(M.OUT, NAME, "lora"), transformer_lora_layers=layers, **meta)
        out, grads = M.traced(model, sched, x)
        M.save({**{k: out[k] for k in ("noisy", "prediction", "loss")}, **M.prefixed("grad.", grads),
                "grad_norm": M.grad_norm(grads).float().reshape(1)}, NAME, file + ".safetensors")


def positions():
    """Rotary angles of whole axes, (cos, sin) pairs, for grids beside a native 30 x 45; head size 16."""
    found = {}
    for grid in ((30, 45), (48, 85), (45, 30), (48, 48), (27, 45), (28, 45), (29, 45), (1, 1), (2, 89), (59, 7)):
        crops = M.get_resize_crop_region_for_grid(grid, 45, 30)
        tables = M.get_3d_rotary_pos_embed(embed_dim=16, crops_coords=crops, grid_size=grid, temporal_size=1)
        cos, sin = (t.reshape(*grid, 16) for t in tables)
        pairs = torch.where(torch.arange(16) % 2 == 0, cos, sin)
        found[f"{grid[0]}x{grid[1]}.h"] = pairs[:, 0, 4:10]
        found[f"{grid[0]}x{grid[1]}.w"] = pairs[0, :, 10:16]
    M.save(found, "positions.safetensors")


if __name__ == "__main__":
    main()
    positions()
