"""CenterHead: one group of small convolutional branches per task (Yin 2021, 2006.11275)."""

from torch import Tensor, nn

from voxelquant.detection.config_schema import HeadConfig


class TaskHead(nn.Module):
    """Branches of one task, module names and order as in det3d: regression first, then `hm`.

    Args:
        n_classes: channels of the heatmap.
        config: shared channels, hidden channels, branches and initialisation.
    """

    def __init__(self, n_classes: int, config: HeadConfig) -> None:
        super().__init__()
        branches = {**config.common_heads, "hm": (n_classes, config.num_hm_conv)}
        for name, (channels, n_convs) in branches.items():
            branch = _branch(config.share_conv_channel, config.head_conv, channels, n_convs)
            if name == "hm":
                last = branch[-1]
                assert isinstance(last, nn.Conv2d)
                assert last.bias is not None
                nn.init.constant_(last.bias, config.init_bias)
            else:
                _init_regression(branch)
            self.add_module(name, branch)

    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        """`[b, c_shared, h, w]` → raw maps by name, `[b, channels, h, w]` each."""
        return {name: branch(shared) for name, branch in self.named_children()}


class CenterHead(nn.Module):
    """A shared convolution and the heads of all tasks.

    Args:
        in_channels: channels of the neck's output.
        class_counts: number of classes of each task.
        config: shared channels, branches and initialisation.
    """

    def __init__(self, in_channels: int, class_counts: list[int], config: HeadConfig) -> None:
        super().__init__()
        # BatchNorm2d keeps torch's defaults here (eps 1e-5, momentum 0.1), unlike the neck.
        self.shared_conv = nn.Sequential(
            nn.Conv2d(in_channels, config.share_conv_channel, 3, padding=1),
            nn.BatchNorm2d(config.share_conv_channel),
            nn.ReLU(),
        )
        self.tasks = nn.ModuleList(TaskHead(count, config) for count in class_counts)

    def forward(self, bev: Tensor) -> list[dict[str, Tensor]]:
        """`[b, c_in, h, w]` → per task the raw maps: no sigmoid, no exponential."""
        shared = self.shared_conv(bev)
        return [task(shared) for task in self.tasks]


def _branch(c_in: int, hidden: int, channels: int, n_convs: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(n_convs - 1):
        modules += [nn.Conv2d(c_in, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU()]
        c_in = hidden
    return nn.Sequential(*modules, nn.Conv2d(c_in, channels, 3, padding=1))


def _init_regression(branch: nn.Sequential) -> None:
    for module in branch:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
