"""Rows of the op table that change texture: blurs, sharpening, noise, compression. See ``qpt.degradations``."""

from __future__ import annotations

import math

from qpt.optable.row import BSRGAN, IMAGENET_C, KADID, REALESRGAN, Degradation, Parameter, Values, no_halo


def _jpeg_halo(params: Values) -> int:
    return 16  # a pixel's own 16-px block, and through chroma upsampling the block beside it


_SIGMA = Parameter("sigma_px", "px", 0.1, 8.0, levels=(0.6, 1.1, 1.8, 2.8, 4.2))
_ANGLE = Parameter("angle_deg", "degree", 0.0, 180.0)
_STD = Parameter("std", "grey level of 255", 0.0, 128.0, levels=(4.0, 8.0, 14.0, 22.0, 34.0))

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
        revision=2,
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
        "poisson_noise_grey",
        "texture",
        (Parameter("peak", "photons of value 255", 1.0, 4096.0, levels=(900.0, 400.0, 150.0, 60.0, 25.0)),),
        source=REALESRGAN
        + ", grey Poisson noise; its scale s of the noise is a peak of 256 / s^2, rounded counts apart",
        oracle="scipy.stats.poisson(peak Y / 255) * 255 / peak - Y on x, rint(clip(., 0, 255)), in distribution",
        halo=no_halo,
        doc="Photons counted for the rounded ITU-R 601 luma Y; their excess over Y on all three channels.",
    ),
    Degradation(
        "gaussian_noise_cov",
        "texture",
        (Parameter("std", "grey level of 255", 0.0, 128.0, levels=(6.0, 12.0, 20.0, 31.0, 46.0)),),
        source=BSRGAN
        + ", noise of a random covariance std^2 U diag(d) U', d uniform; U uniform over the rotations and "
        "signs kept, where the source has U from positive numbers and makes the covariance positive",
        oracle="numpy: rint(clip(x + std * m n, 0, 255)), n ~ N(0, 1), m = scipy.spatial.transform.Rotation * sqrt(d)",
        halo=no_halo,
        doc="Gaussian noise of one tint: correlated between channels by a covariance drawn from the row's seed.",
    ),
    Degradation(
        "iso_noise",
        "texture",
        (
            Parameter("colour_shift", "turns of hue", 0.0, 1.0, levels=(0.01, 0.015, 0.02, 0.03, 0.04)),
            Parameter("intensity", "ratio", 0.0, 1.0, levels=(0.1, 0.25, 0.45, 0.7, 1.0)),
        ),
        source="Albumentations' ISONoise, whose defaults (0.01 to 0.05 and 0.1 to 0.5) are about levels 1 to 3",
        oracle="cv2.cvtColor(COLOR_RGB2HLS), H + 360 colour_shift intensity n, L + k (1 - L) / 255, COLOR_HLS2RGB",
        halo="whole",
        doc="A camera at a high ISO number: hue turned by a normal number, light added by a Poisson number k, whose "
        "mean is intensity times the spread of the image's lightness.",
    ),
)
