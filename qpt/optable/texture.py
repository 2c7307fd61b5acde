"""Rows of the op table that change texture: blurs, sharpening, noise, compression. See ``qpt.degradations``."""

from __future__ import annotations

import math

from qpt.optable.row import IMAGENET_C, KADID, REALESRGAN, Degradation, Parameter, Values, no_halo


def _jpeg_halo(params: Values) -> int:
    return 16  # a pixel's own 16-px block, and through chroma upsampling the block beside it


_SIGMA = Parameter("sigma_px", "px", 0.1, 8.0, levels=(0.6, 1.1, 1.8, 2.8, 4.2))
_ANGLE = Parameter("angle_deg", "degree", 0.0, 180.0)
_STD = Parameter("std", "grey level of 255", 0.0, 128.0, levels=(4.0, 8.0, 14.0, 22.0, 34.0))

_BILATERAL = (40.0, 70.0, 110.0, 170.0, 260.0)
_DENOISE = (28.0, 40.0, 49.0, 63.0, 89.0)  # 3.5 std: two samples of one colour are 3.4 std apart on average

TEXTURE: tuple[Degradation, ...] = (
    Degradation(
        "gaussian_blur",
        "texture",
        (_SIGMA,),
        source=KADID + ", Gaussian blur",
        oracle="cv2.GaussianBlur(x, (2r+1, 2r+1), sigma_px, borderType=BORDER_REFLECT_101), r = ceil(3 sigma_px)",
        halo=lambda p: math.ceil(3 * p[0]),
        doc="Isotropic Gaussian, taps exp(-d^2 / 2 sigma^2) out to ceil(3 sigma), sum 1, border reflect-101.",
    ),
    Degradation(
        "gaussian_blur_aniso",
        "texture",
        (
            Parameter("sigma_x_px", "px", 0.1, 8.0, levels=(0.8, 1.4, 2.2, 3.2, 4.6)),
            Parameter("sigma_y_px", "px", 0.1, 8.0, levels=(0.3, 0.5, 0.7, 1.0, 1.4)),
            _ANGLE,
        ),
        source=REALESRGAN + ", anisotropic Gaussian kernel",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel of ceil(3 max(sigma)) radius, sum 1",
        halo=lambda p: math.ceil(3 * max(p[0], p[1])),
        doc="Gaussian whose sigma_x axis is turned by angle_deg, counter-clockwise as seen; border reflect-101.",
    ),
    Degradation(
        "motion_blur",
        "texture",
        (Parameter("length_px", "px", 1.0, 48.0, levels=(3.0, 6.0, 10.0, 15.0, 21.0)), _ANGLE),
        source=KADID + ", motion blur",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel = segment with tent weights, sum 1",
        halo=lambda p: math.ceil(p[0] / 2) + 1,
        doc="Mean along a centred segment of length_px at angle_deg, counter-clockwise as seen; border reflect-101.",
    ),
    Degradation(
        "defocus_blur",
        "texture",
        (Parameter("radius_px", "px", 0.5, 16.0, levels=(1.0, 1.8, 2.8, 4.2, 6.5)),),
        source=IMAGENET_C + ", defocus blur, with an analytic edge",
        oracle="cv2.filter2D(x, -1, disk, borderType=BORDER_REFLECT_101), disk = clip(radius + 0.5 - d, 0, 1), sum 1",
        halo=lambda p: math.ceil(p[0]) + 1,
        doc="Mean over a disk of radius_px whose edge pixel is weighted by its distance; border reflect-101.",
    ),
    Degradation(
        "median_blur",
        "texture",
        (Parameter("radius_px", "px", 0.0, 7.0, levels=(1.0, 2.0, 3.0, 4.0, 5.0), integer=True),),
        source="Tukey, Exploratory Data Analysis (1977), in two dimensions",
        oracle="cv2.medianBlur(x, 2 radius_px + 1), whose border is replicated",
        halo=lambda p: int(p[0]),
        doc="Each channel's median over a square of 2 radius + 1 pixels; border replicated.",
    ),
    Degradation(
        "glass_blur",
        "texture",
        (
            Parameter("delta_px", "px", 0.0, 16.0, levels=(1.0, 2.0, 3.0, 4.0, 5.0), integer=True),
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(0.5, 0.6, 0.7, 0.8, 0.9)),
        ),
        source=IMAGENET_C + ", glass blur, its swaps in sequence replaced by one draw per pixel",
        oracle="cv2.remap of the drawn offsets (INTER_NEAREST, BORDER_REPLICATE), then gaussian_blur's",
        halo=lambda p: int(p[0]) + math.ceil(3 * p[1]),
        doc="Every pixel from up to delta_px rows and columns away, uniformly, then a Gaussian blur.",
    ),
    Degradation(
        "zoom_blur",
        "texture",
        (Parameter("zoom", "ratio", 1.0, 2.0, levels=(1.03, 1.06, 1.1, 1.15, 1.22)),),
        source=IMAGENET_C + ", zoom blur, with 16 views",
        oracle="scipy.ndimage.map_coordinates(channel, at, order=1, mode='nearest'), mean of the 16 views",
        halo="whole",
        doc="Mean of 16 views enlarged about the centre by 1 to zoom, bilinear.",
    ),
    Degradation(
        "unsharp_mask",
        "texture",
        (
            Parameter("amount", "ratio", 0.0, 16.0, levels=(0.6, 1.1, 1.8, 2.8, 4.2)),
            Parameter("sigma_px", "px", 0.8, 2.0),
        ),
        source="unsharp masking as skimage.filters.unsharp_mask has it; oversharpened as in KADID-10k",
        oracle="x + amount * (x - blurred), blurred by gaussian_blur's oracle in float64",
        halo=lambda p: math.ceil(3 * p[1]),
        doc="The difference to a Gaussian blur, amount times on top: edges overshoot into halos.",
    ),
    Degradation(
        "gaussian_noise",
        "texture",
        (_STD,),
        source=KADID + ", white noise",
        oracle="numpy: rint(clip(x + std * n, 0, 255)), n ~ N(0, 1) per pixel and channel",
        halo=no_halo,
        doc="Independent Gaussian noise on each channel; random numbers are indexed by image coordinates.",
    ),
    Degradation(
        "gaussian_noise_grey",
        "texture",
        (_STD,),
        source=REALESRGAN + ", grey noise",
        oracle="numpy: rint(clip(x + std * n, 0, 255)), n ~ N(0, 1) per pixel",
        halo=no_halo,
        doc="One Gaussian number per pixel, added to all three channels.",
    ),
    Degradation(
        "gaussian_noise_ycbcr",
        "texture",
        (Parameter("std", "grey level of 255", 0.0, 128.0, levels=(2.6, 5.7, 8.1, 11.4, 14.0)),),
        source=KADID + ", white noise in colour component; variances 0.0001 to 0.003 of ARNIQA (WACV 2024)",
        oracle="numpy: rint(clip(x + std * M n, 0, 255)), M from ITU-T T.871 YCbCr to RGB, n ~ N(0, 1) per Y, Cb, Cr",
        halo=no_halo,
        doc="Independent Gaussian noise on Y, Cb and Cr, which colours blue and red more than green.",
    ),
    Degradation(
        "speckle_noise",
        "texture",
        (Parameter("std", "share of the value", 0.0, 4.0, levels=(0.032, 0.071, 0.1, 0.141, 0.224)),),
        source=KADID + ", multiplicative noise; variances 0.001 to 0.05 of ARNIQA (WACV 2024)",
        oracle="skimage.util.random_noise(x, mode='speckle', var=std^2), rint, in distribution",
        halo=no_halo,
        doc="Gaussian noise proportional to each value: x + x std n.",
    ),
    Degradation(
        "impulse_noise",
        "texture",
        (Parameter("density", "share of samples", 0.0, 1.0, levels=(0.005, 0.01, 0.03, 0.06, 0.12)),),
        source=KADID + ", impulse noise; the milder half of " + IMAGENET_C + " at levels 3 to 5",
        oracle="skimage.util.random_noise(x, mode='s&p', amount=density), in distribution",
        halo=no_halo,
        doc="Each sample black with probability density / 2, white with density / 2.",
    ),
    Degradation(
        "poisson_noise",
        "texture",
        (Parameter("peak", "photons of value 255", 1.0, 4096.0, levels=(900.0, 400.0, 150.0, 60.0, 25.0)),),
        source=IMAGENET_C + ", shot noise: its 60 and 25 photons are levels 4 and 5",
        oracle="scipy.stats.poisson(peak x / 255) * 255 / peak, rint(clip(., 0, 255)), in distribution",
        halo=no_halo,
        doc="Photons counted per sample, Poisson with mean peak x / 255, scaled back; drawn by exact inversion.",
    ),
    Degradation(
        "jpeg",
        "texture",
        (Parameter("quality", "libjpeg quality", 1.0, 100.0, levels=(75.0, 45.0, 28.0, 16.0, 8.0), integer=True),),
        source="ITU-T T.81 baseline, 4:2:0, with libjpeg-turbo's colour conversion and fancy upsampling",
        oracle="Pillow: Image.save(format='JPEG', quality=quality) then load (subsampling 4:2:0, its default)",
        halo=_jpeg_halo,
        doc="JPEG round trip without entropy coding (which loses nothing); blocks start at the image's corner.",
    ),
    Degradation(
        "box_blur",
        "texture",
        (Parameter("radius_px", "px", 0.0, 24.0, levels=(1.0, 2.0, 3.0, 5.0, 8.0), integer=True),),
        source="mean filter of OpenCV and Kornia",
        oracle="cv2.blur(x, (2 radius_px + 1, 2 radius_px + 1), borderType=BORDER_REFLECT_101)",
        halo=lambda p: int(p[0]),
        doc="Mean over a square of 2 radius + 1 pixels; border reflect-101.",
    ),
    Degradation(
        "generalised_blur",
        "texture",
        (
            Parameter("sigma_x_px", "px", 0.1, 8.0, levels=(1.1, 1.5, 2.0, 2.6, 3.4)),
            Parameter("sigma_y_px", "px", 0.1, 8.0, levels=(0.8, 1.0, 1.3, 1.8, 2.4)),
            _ANGLE,
            Parameter("beta", "exponent", 0.5, 4.0),
        ),
        source=REALESRGAN + ", generalised Gaussian kernel of 21 x 21, its largest",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel = exp(-(d^2)^beta / 2), sum 1",
        halo=lambda p: 10,
        doc="Blur of weight exp(-(d^2)^beta / 2), d in sigmas: beta 1 is Gaussian, less peaked, more flat-topped.",
    ),
    Degradation(
        "plateau_blur",
        "texture",
        (
            Parameter("sigma_x_px", "px", 0.1, 8.0, levels=(0.5, 0.7, 1.0, 1.7, 2.7)),
            Parameter("sigma_y_px", "px", 0.1, 8.0, levels=(0.4, 0.5, 0.7, 1.1, 1.9)),
            _ANGLE,
            Parameter("beta", "exponent", 1.0, 2.0),
        ),
        source=REALESRGAN + ", plateau-shaped kernel of 21 x 21, its largest",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel = 1 / (1 + (d^2)^beta), sum 1",
        halo=lambda p: 10,
        doc="Blur of weight 1 / (1 + (d^2)^beta), d in sigmas: a flat top and long tails.",
    ),
    Degradation(
        "sinc_filter",
        "texture",
        (
            Parameter("cutoff", "radian per px", 0.1, math.pi, levels=(2.4, 1.8, 1.35, 0.95, 0.63)),
            Parameter("radius_px", "px", 0.0, 24.0, levels=(10.0,) * 5, integer=True),
        ),
        source=REALESRGAN + ", sinc filter: cutoffs of pi/5 to pi, sizes of 7 to 21",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel of scipy.special.j1, sum 1",
        halo=lambda p: int(p[1]),
        doc="Circular low-pass c J1(c r) / (2 pi r), cut off at radius_px: blur with ringing along edges.",
    ),
    Degradation(
        "high_sharpen",
        "texture",
        (
            Parameter("amount", "ratio", 0.0, 64.0, levels=(0.4, 0.8, 1.5, 2.6, 4.5)),
            Parameter("radius_px", "px", 1.0, 24.0, levels=(6.0,) * 5, integer=True),
        ),
        source=KADID
        + ", high sharpen; ARNIQA's (WACV 2024) kernel, on luma instead of L of CIELAB, with milder amounts",
        oracle="x + amount * (Y - cv2.GaussianBlur(Y, (2r+1, 2r+1), r, borderType=BORDER_REFLECT_101)), r = radius_px",
        halo=lambda p: int(p[1]),
        doc="The luma's difference to its wide blur, amount times on every channel: local contrast far too strong.",
    ),
    Degradation(
        "bilateral",
        "texture",
        (
            Parameter("sigma_colour", "grey level of 255, summed over channels", 1.0, 765.0, levels=_BILATERAL),
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(1.0, 1.5, 2.0, 2.5, 3.0)),
        ),
        source="Tomasi and Manduchi, Bilateral filtering for gray and color images (ICCV 1998)",
        oracle="cv2.bilateralFilter(x, -1, sigma_colour, sigma_px, borderType=BORDER_REFLECT_101)",
        halo=lambda p: max(round(1.5 * p[1]), 1),
        doc="Mean over a disk, weighted by nearness and by likeness of colour: fine texture goes, edges stay.",
    ),
    Degradation(
        "denoise",
        "texture",
        (
            Parameter("std", "grey level of 255", 0.0, 128.0, levels=(8.1, 11.4, 14.0, 18.0, 25.5)),
            Parameter("sigma_colour", "grey level of 255, summed over channels", 1.0, 765.0, levels=_DENOISE),
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(2.0,) * 5),
        ),
        source=KADID + ", denoise: noise, then a bilateral filter instead of a network; ARNIQA's (WACV 2024) variances",
        oracle="cv2.bilateralFilter(gaussian_noise(x, std), -1, sigma_colour, sigma_px, borderType=BORDER_REFLECT_101)",
        halo=lambda p: max(round(1.5 * p[2]), 1),
        doc="gaussian_noise, then bilateral: blotches where the noise was, texture gone with it.",
    ),
    Degradation(
        "jpeg2000",
        "texture",
        (
            Parameter(
                "ratio", "bytes of the image / bytes of the file", 1.0, 4096.0, levels=(16.0, 32.0, 45.0, 90.0, 170.0)
            ),
        ),
        source="ITU-T T.800 with the 9/7 wavelet; KADID-10k's JPEG 2000, four of ARNIQA's (WACV 2024) ratios",
        oracle="Pillow: save(., 'JPEG2000', quality_mode='rates', quality_layers=[ratio], irreversible=True, mct=1)",
        halo="whole",
        doc="JPEG 2000 without entropy coding; the step is that of a file of this ratio: blur and ringing.",
    ),
)
