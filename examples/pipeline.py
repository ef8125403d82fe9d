"""A network and a loop of your own: prune, train, save, export, quantise by a DataLoader, bundle, measure and gate."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compress
import deploy
from compress import prune


def make(num_classes: int = 2) -> nn.Module:
    convs = [nn.Conv2d(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def train(model: nn.Module, loader: DataLoader) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for images, labels in loader:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step(), optimizer.zero_grad()


if __name__ == "__main__":
    out, known = Path(sys.argv[1] if sys.argv[1:] else "runs/pipeline"), {"classes": ("dark", "bright")}
    labels = torch.arange(128) % 2
    loader = DataLoader(TensorDataset((1 + labels[:, None, None, None]) * torch.rand(128, 3, 32, 32) / 2, labels), 16)
    train(model := make(), loader)
    train(small := prune.shrink(model, loader, macs=0.5, criterion="taylor")[0], loader)
    compress.save(small, out / "small", factory="pipeline:make", **known)
    known["preprocessing"] = {"size": (32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    files = [deploy.export(one, loader, out / f"{k}.onnx", **known) for k, one in enumerate((model, small))]
    int8 = deploy.quantize(files[1], out / "int8.onnx", loader)
    bundle = deploy.load(deploy.write_bundle({"fp32": files[1], "int8": int8}, out / "bundle"))
    record = deploy.measure([deploy.load_engine(files[0]), bundle], loader, out / "bench.json")
    print(deploy.parity(small, files[1], loader)[0], deploy.gate(record, record).passed)
