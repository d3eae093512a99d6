#!/usr/bin/env python3
"""The training step of `cogsmith bench` in PyTorch, diffusers and PEFT: one JSON object.

usage: peer_gpu.py MODEL [--method lora|full] [--modes eager,compile] [--rank 128] [--repeat 5]
                   [--frames N --height N --width N] [--device cuda|cpu]
                   [--cogsmith build/cogsmith [--recompute selective]]

MODEL is a folder with transformer/config.json; weights are random. Sizes, in pixels, are the
model's own unless given. Modes, each in memory of its own:

    eager          as diffusers' training scripts do it: gradient checkpointing
    eager_plain    without gradient checkpointing
    compile        torch.compile, gradient checkpointing
    compile_plain  torch.compile, without

Frozen weights are bf16; adapters (with --method full all weights) are f32 under autocast to bf16,
AdamW's moments f32; batch 1: what cogsmith holds. A mode that does not fit says so in "error". With
--cogsmith the program times the same step first; "speedup" is the least time of each mode over
cogsmith's.

It needs torch, diffusers 0.35 and peft; nothing is downloaded.
"""
import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import diffusers
import torch
import torch.utils.checkpoint
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from peft import LoraConfig

SCALE, RATIO, HEAD = 8, 4, 64  # pixels and frames of one latent; channels of one head
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
MODES = ("eager", "eager_plain", "compile", "compile_plain")


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("model")
    p.add_argument("--method", choices=("lora", "full"), default="lora")
    p.add_argument("--modes", default="eager,compile", help="of " + ", ".join(MODES))
    p.add_argument("--frames", type=int)
    p.add_argument("--height", type=int)
    p.add_argument("--width", type=int)
    p.add_argument("--rank", type=int, default=128)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--device", default="cuda")
    p.add_argument("--cogsmith", help="the program, to time it beside the others")
    p.add_argument("--recompute", default="selective", help="cogsmith's memory.recompute")
    a = p.parse_args()
    a.modes = a.modes.split(",")
    if set(a.modes) - set(MODES):
        p.error("--modes takes " + ", ".join(MODES))
    if a.repeat < 1:
        p.error("--repeat takes a number from 1 up")
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        p.error("no GPU that this PyTorch can use; --device cpu runs without")
    return a


class Step:
    """The model's config, the sizes of a sample, and the tensors of one step."""

    def __init__(self, a):
        self.device = torch.device(a.device)
        with open(os.path.join(a.model, "transformer", "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        c = self.config
        self.frames = a.frames or c["sample_frames"]
        self.height = a.height or c["sample_height"] * SCALE
        self.width = a.width or c["sample_width"] * SCALE
        self.patch, self.patch_t = c["patch_size"], c.get("patch_size_t") or 1
        latent = (self.frames - 1) // RATIO + 1
        f = -(-latent // self.patch_t) * self.patch_t  # a multiple of the patch
        h, w = self.height // SCALE, self.width // SCALE
        c.update(sample_frames=self.frames, sample_height=h, sample_width=w)
        self.text = c["max_text_seq_length"]
        self.grid = (f // self.patch_t, h // self.patch, w // self.patch)
        self.rows = self.text + self.grid[0] * self.grid[1] * self.grid[2]
        made = {"device": self.device, "dtype": torch.bfloat16}
        self.latents = torch.randn(1, f, c["in_channels"], h, w, **made)
        self.prompt = torch.randn(1, self.text, c["text_embed_dim"], **made)
        self.target = torch.randn(1, f, c["out_channels"], h, w, device=self.device)
        self.timestep = torch.tensor([500], device=self.device)
        self.rope = self.rotary() if c["use_rotary_positional_embeddings"] else None
        self.ofs = torch.full((1,), 2.0, **made) if c.get("ofs_embed_dim") else None

    def rotary(self):
        f, h, w = self.grid
        if self.patch_t == 1:
            return get_3d_rotary_pos_embed(HEAD, ((0, 0), (h, w)), (h, w), f, device=self.device)
        return get_3d_rotary_pos_embed(HEAD, None, (h, w), f, grid_type="slice", max_size=(h, w),
                                       device=self.device)

    def predict(self, model):
        return model(hidden_states=self.latents, encoder_hidden_states=self.prompt,
                     timestep=self.timestep, image_rotary_emb=self.rope, ofs=self.ofs,
                     return_dict=False)[0]


def checkpointed(module, *args):
    """What diffusers does by itself, without a test of versions that torch.compile cannot trace."""
    return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=False)


def model_of(a, step, mode):
    """The transformer with random weights, made on the device."""
    with step.device:
        model = CogVideoXTransformer3DModel.from_config(step.config).train()
    if a.method == "lora":
        model.to(torch.bfloat16).requires_grad_(False)
        model.add_adapter(LoraConfig(r=a.rank, lora_alpha=a.rank / 2, target_modules=TARGETS))
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    if not mode.endswith("_plain"):
        model.enable_gradient_checkpointing(checkpointed)
    return model


def synchronize(step):
    if step.device.type == "cuda":
        torch.cuda.synchronize(step.device)


def timed(step, run, repeat):
    """Seconds of each run after three that warm up."""
    seconds = []
    for i in range(3 + repeat):
        synchronize(step)
        start = time.perf_counter()
        run()
        synchronize(step)
        if i >= 3:
            seconds.append(time.perf_counter() - start)
    return seconds


def peak_bytes(step):
    if step.device.type == "cuda":
        return torch.cuda.max_memory_reserved(step.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the whole process


def measure(a, step, mode):
    model = model_of(a, step, mode)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-3,
                                  fused=step.device.type == "cuda")
    forward = torch.compile(model) if mode.startswith("compile") else model

    def run():
        with torch.autocast(step.device.type, dtype=torch.bfloat16):
            prediction = step.predict(forward)
        loss = ((prediction.float() - step.target) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    seconds = timed(step, run, a.repeat)
    return {"min_ms": round(1e3 * min(seconds), 3),
            "median_ms": round(1e3 * statistics.median(seconds), 3),
            "peak_bytes": peak_bytes(step), "trained": sum(p.numel() for p in trained)}


def measure_alone(a, step, mode):
    """In memory that nothing else holds."""
    torch._dynamo.reset()
    gc.collect()
    if step.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(step.device)
    try:
        return measure(a, step, mode)
    except torch.cuda.OutOfMemoryError as e:
        return {"error": str(e).split("\n", maxsplit=1)[0]}


def cogsmith(a, step):
    """The row of the step as `cogsmith bench` prints it."""
    device = "cuda" if step.device.type == "cuda" else "cpu"
    command = [a.cogsmith, "bench", "--json", f"device={device}", f"model.path={a.model}",
               "bench.what=step", f"bench.repeat={a.repeat}", f"method={a.method}",
               f"memory.recompute={a.recompute}", f"data.frames={step.frames}",
               f"data.height={step.height}", f"data.width={step.width}"]
    if a.method == "lora":
        command.append(f"lora.rank={a.rank}")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"peer_gpu.py: {' '.join(command)}: exit code {done.returncode}")
    rows = json.loads(done.stdout)
    return next(row for row in rows if row["name"] == f"step {a.method}")


def main():
    a = arguments()
    torch.manual_seed(0)
    step = Step(a)
    cuda = step.device.type == "cuda"
    out = {"model": a.model, "method": a.method, "rows": step.rows,
           "size": [step.frames, step.height, step.width],
           "device": torch.cuda.get_device_name(step.device) if cuda else "cpu",
           "torch": torch.__version__, "diffusers": diffusers.__version__}
    if a.cogsmith:
        out["cogsmith"] = cogsmith(a, step)
        if out["cogsmith"]["rows"] != step.rows:
            sys.exit(f"peer_gpu.py: expected {step.rows} rows, cogsmith's step has "
                     f"{out['cogsmith']['rows']}")
    for mode in a.modes:
        print(f"peer_gpu.py: {mode}", file=sys.stderr)
        out[mode] = measure_alone(a, step, mode)
    if a.cogsmith:
        out["speedup"] = {m: round(out[m]["min_ms"] / out["cogsmith"]["min_ms"], 3)
                          for m in a.modes if "min_ms" in out[m]}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
