"""The one equation of sparse geometry: `input = stride * output - padding + dilation * tap`."""

from dataclasses import dataclass

from voxelquant.errors import GeometryError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel geometry of a 3D convolution, every triple in axis order z, y, x.

    A submanifold convolution (Graham 2018, 1711.10275) keeps its input sites and centres the
    kernel; `padding` is then ignored, and `stride` must be 1.
    """

    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    subm: bool = False

    def __post_init__(self) -> None:
        if min(self.kernel_size) < 1 or min(self.stride) < 1 or min(self.dilation) < 1:
            raise GeometryError(f"got {self}, need kernel, stride and dilation of at least 1")
        if min(self.padding) < 0:
            raise GeometryError(f"got padding {self.padding}, need padding of at least 0")
        if self.subm:
            if self.stride != (1, 1, 1):
                raise GeometryError(f"got a submanifold conv of stride {self.stride}, need 1")
            if any(k % 2 == 0 for k in self.kernel_size):
                raise GeometryError(
                    f"got a submanifold kernel {self.kernel_size}, need odd sizes: it is centred"
                )

    @property
    def taps(self) -> int:
        """Number of kernel positions, `k`."""
        kz, ky, kx = self.kernel_size
        return kz * ky * kx

    @property
    def tap_offsets(self) -> list[Triple]:
        """Position `(z, y, x)` of every tap, in the row-major order of the weight."""
        kz, ky, kx = self.kernel_size
        return [(z, y, x) for z in range(kz) for y in range(ky) for x in range(kx)]

    @property
    def effective_padding(self) -> Triple:
        """Padding that the equation uses: half the dilated kernel for a submanifold conv."""
        if not self.subm:
            return self.padding
        z, y, x = (d * (k // 2) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return (z, y, x)

    def output_shape(self, spatial_shape: Triple) -> Triple:
        """Grid of the output, `floor((in + 2p - d(k-1) - 1) / s) + 1` per axis.

        Raises:
            GeometryError: the kernel does not fit into the padded grid.

        >>> ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)).output_shape((41, 1440, 1440))
        (21, 720, 720)
        """
        if self.subm:
            return spatial_shape
        sizes = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                spatial_shape,
                self.padding,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        ]
        if min(sizes) < 1:
            raise GeometryError(
                f"got a grid {spatial_shape} for {self}: no output is left ({tuple(sizes)}); "
                "use a larger grid or less stride"
            )
        return (sizes[0], sizes[1], sizes[2])
