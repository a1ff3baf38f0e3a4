"""Writes the networks that servers are measured with besides the shipped ones: `resnet-18` (112 px, the work that many
attribute networks are) and `light` (64 px, under 10 M multiply-adds, where the server itself is the cost). Their
weights are random, from a fixed seed; their answers mean nothing and have the shape of `face-attributes`.

Each becomes a folder of models of its own, `<out>/<name>/<name>/1/`, so that a server of one holds nothing else. The two
shipped networks that are measured are copied to `<out>/shipped/`, for the same reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHIPPED = Path(__file__).resolve().parent.parent / "models"
MEASURED = ("face-attributes", "face-detector")
SEED = 5
OPSET, IR_VERSION = 17, 8
MANIFEST_KEY = "facewise.manifest"
LABELS = {
    "age": [],
    "gender": ["female", "male"],
    "smile": ["neutral", "smiling"],
    "emotion": ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"],
}
AGES = 101


class Builder:
    """A graph being written, layer by layer; batch norms are already folded into the convolutions."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.random = np.random.default_rng(SEED)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.sides = {"pixels": size}
        self.parameters = self.multiply_adds = 0

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], sd: float) -> str:
        values = (self.random.standard_normal(shape) * sd).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        self.parameters += values.size
        return name

    def convolution(
        self, name: str, x: str, channels: tuple[int, int], kernel: int, stride: int, gain: float = 2.0
    ) -> str:
        """He's initialisation: `gain` 2 keeps the variance through a ReLU, 1 where none follows."""
        narrow, wide = channels
        fan = narrow * kernel * kernel
        inputs = [x, self.weight(f"{name}.weight", (wide, narrow, kernel, kernel), (gain / fan) ** 0.5)]
        inputs.append(self.weight(f"{name}.bias", (wide,), 0.01))
        side = (self.sides[x] + 2 * (kernel // 2) - kernel) // stride + 1
        self.sides[name] = side
        self.multiply_adds += fan * wide * side * side
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", inputs, name, **shape)

    def relu(self, x: str) -> str:
        self.sides[f"{x}.relu"] = self.sides[x]
        return self.node("Relu", [x], f"{x}.relu")

    def residual(self, name: str, x: str, channels: tuple[int, int], stride: int) -> str:
        """The basic block of ResNet-18 and -34 (He et al. 2015)."""
        narrow, wide = channels
        shortcut = (
            x if stride == 1 and narrow == wide else self.convolution(f"{name}.down", x, channels, 1, stride, 1.0)
        )
        y = self.relu(self.convolution(f"{name}.first", x, channels, 3, stride))
        # A small gain: with the usual one the variance would double from block to block.
        y = self.convolution(f"{name}.second", y, (wide, wide), 3, 1, 0.2)
        self.sides[name] = self.sides[y]
        return self.relu(self.node("Add", [y, shortcut], name))

    def model(self, x: str, channels: int, description: str) -> tuple[onnx.ModelProto, dict[str, object]]:
        """Pools, adds the four heads, and puts the manifest in."""
        features = self.node("Flatten", [self.node("GlobalAveragePool", [x], "pooled")], "features")
        outputs, heads = [], []
        for task, labels in LABELS.items():
            classes = len(labels) or AGES
            inputs = [features, self.weight(f"{task}.weight", (classes, channels), channels**-0.5)]
            inputs.append(self.weight(f"{task}.bias", (classes,), 0.01))
            logits = self.node("Gemm", inputs, f"{task}.logits", transB=1)
            self.node("Softmax", [logits], task, axis=1)
            self.multiply_adds += classes * channels
            outputs.append(helper.make_tensor_value_info(task, TensorProto.FLOAT, ["batch", classes]))
            point = {"point": "median"} if task == "age" else {}
            heads.append({"task": task, "output": task, "values": "probabilities", "labels": labels, **point})
        manifest = {
            "schema": 1,
            "name": self.name,
            "version": "1",
            "kind": "attributes",
            "description": description,
            "input": {
                "name": "pixels",
                "size": self.size,
                "colour": "rgb",
                "mean": [0.5] * 3,
                "sd": [0.5] * 3,
                "template": {"right_eye": [0.3, 0.37], "left_eye": [0.7, 0.37], "mouth": [0.5, 0.77]},
            },
            "heads": heads,
            "provenance": {"seed": SEED, "parameters": self.parameters, "multiply_adds": self.multiply_adds},
        }
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, self.size, self.size])
        graph = helper.make_graph(self.nodes, self.name, [pixels], outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(model, {MANIFEST_KEY: json.dumps(manifest)})
        onnx.checker.check_model(model)
        return model, manifest


def resnet_18() -> tuple[onnx.ModelProto, dict[str, object]]:
    """ResNet-18 at 112 pixels."""
    net = Builder("resnet-18", 112)
    x = net.relu(net.convolution("stem", "pixels", (3, 64), 7, 2))
    net.sides["pool"] = (net.sides[x] - 1) // 2 + 1
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, wide in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = net.residual(f"stage{stage + 1}.{block}", x, (channels, wide), stride)
            channels = wide
    return net.model(x, channels, "ResNet-18 with random weights, for measuring servers")


def light() -> tuple[onnx.ModelProto, dict[str, object]]:
    """Six plain convolutions at 64 pixels."""
    net = Builder("light", 64)
    x, channels = "pixels", 3
    for layer, (wide, stride) in enumerate(((16, 2), (32, 2), (64, 2), (64, 1), (128, 2), (128, 1))):
        x = net.relu(net.convolution(f"layer{layer + 1}", x, (channels, wide), 3, stride))
        channels = wide
    return net.model(x, channels, "A light network with random weights, for measuring servers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder that gets a folder of models for each network"
    )
    out = parser.parse_args().out
    for model, manifest in (resnet_18(), light()):
        folder = out / model.graph.name / model.graph.name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        provenance = manifest["provenance"]
        millions = {
            key: f"{provenance[key] / 1e6:.1f} M {key.replace('_', '-')}" for key in ("parameters", "multiply_adds")
        }
        print(f"{folder}: {', '.join(millions.values())}")
    for name in MEASURED:
        shutil.copytree(SHIPPED / name, out / "shipped" / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
