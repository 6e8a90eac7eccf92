"""A rank of a training by Lightning in two processes, with recalibration and without."""

import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from normkit.integrations.lightning import Recalibrate


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)
        )
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, _):
        self.seen.append({k: v.clone() for k, v in self.state_dict().items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(look):
    torch.manual_seed(0)
    # Shares that differ, so that a rank's own moments are not those of all.
    x = torch.randn(40, 3) + 5 * (torch.arange(40)[:, None] % 2)
    data = TensorDataset(x)
    callback = Recalibrate(samples=None)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[callback] if look else [],
    )  # fmt: skip
    model = Model()
    trainer.fit(model, DataLoader(data, 5, shuffle=False), DataLoader(data, 20))
    samples = callback.result.samples if look else 0
    return x, model.seen, model.state_dict(), samples


def main(rank, folder, port):
    warnings.simplefilter("ignore")
    # As torchrun sets them: Lightning then starts no processes itself.
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        RANK=rank, LOCAL_RANK=rank, GROUP_RANK="0", TORCHELASTIC_RUN_ID="tests",
    )  # fmt: skip
    results = {"with": trained(True), "without": trained(False)}
    torch.save(results, Path(folder) / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[4], sys.argv[5])
