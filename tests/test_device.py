import torch
from torch import nn

from selfvox.device import make_fabric


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch):
        self.seen = batch["image"]
        self.computed = self.layer(self.seen)
        return self.computed


def test_mixed_precision_computes_in_bf16_and_leaves_the_images_as_they_are():
    fabric = make_fabric("cpu", 1, "bf16")
    recorder = Recorder()
    image = torch.randn(2, 4)
    fabric.setup(recorder)({"image": image})
    assert recorder.computed.dtype == torch.bfloat16
    assert torch.equal(recorder.seen, image)
