"""PyTorch's side of `make bench-training`: training steps of a residual network (a stem of stride 2, four stages of
two basic blocks, 139 M multiply-adds at 64 px, 112 outputs) on random pictures.

A step is the forward pass, the cross-entropy of the four heads, the backward pass and AdamW, channels last. Prints one
JSON line: {"pictures_per_second": 388.1, "torch": "2.11.0+cpu"}.
"""

import argparse
import json
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 64, 128, 256)
BLOCKS = 2
SIDE = 64
# age, gender, smile, emotion
HEADS = (101, 2, 2, 7)
WARM_UP_STEPS = 5


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A basic block: two 3×3 convolutions beside the identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3, 1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first(x), inplace=True)
        return functional.relu(self.second(inner) + self.shortcut(x), inplace=True)


def network() -> nn.Sequential:
    layers = [convolution(3, WIDTHS[0], 3, 2), nn.ReLU(inplace=True)]
    inputs = WIDTHS[0]
    for stage, outputs in enumerate(WIDTHS):
        for block in range(BLOCKS):
            layers.append(Residual(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, sum(HEADS)))


def pictures_per_second(batch: int, steps: int, bf16: bool) -> float:
    torch.manual_seed(1)
    model = network().train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pictures = torch.rand(batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels = [torch.randint(classes, (batch,)) for classes in HEADS]
    for step in range(WARM_UP_STEPS + steps):
        if step == WARM_UP_STEPS:
            start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            heads = model(pictures).float().split(HEADS, dim=1)
        loss = sum(functional.cross_entropy(logits, label) for logits, label in zip(heads, labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return batch * steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    speed = pictures_per_second(arguments.batch, arguments.steps, arguments.precision == "bf16")
    print(json.dumps({"pictures_per_second": round(speed, 1), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
