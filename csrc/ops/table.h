// The compiled op table: X(name of the op's function, function of h, w and blocks that gives its scratch), in the order
// of ids, which is that of qpt/degradations/op_table.py; the two are compared when qpt._C is loaded. docs/add-an-op.md
// says what a new op needs.
//
// A header holds an algorithm and the ops that are built on it, whatever their family. Where the name of an op does not
// tell its header:
//   bilateral.h    denoise
//   blur.h         gaussian_blur, gaussian_blur_aniso, motion_blur, defocus_blur
//   colour.h       brightness, contrast, saturation, hue, value_shift
//   lab.h          chroma, brightness_curve
//   photons.h      poisson_noise, poisson_noise_grey, iso_noise
//   rescale.h      pixelate
//   shaped_blur.h  generalised_blur, plateau_blur, sinc_filter
//   sharpen.h      unsharp_mask, colour_diffusion
//   squares.h      non_eccentricity_patch, colour_block
//   tone.h         mean_shift, gamma, contrast_curve, quantise, posterise, dither
//   warp.h         zoom_blur, spatial_jitter, repeated_jitter, colour_shift, chromatic_aberration, motion_trail
// The function of the scratch is in the same header or in one that it includes: no_bytes in op.h, that of shaped_blur.h
// in blur.h, that of spatial_jitter in noise.h.
#pragma once
#include "bilateral.h"
#include "blur.h"
#include "box.h"
#include "colour.h"
#include "edges.h"
#include "elastic.h"
#include "glass.h"
#include "jpeg.h"
#include "jpeg2000.h"
#include "lab.h"
#include "median.h"
#include "noise.h"
#include "photons.h"
#include "rescale.h"
#include "resize.h"
#include "shaped_blur.h"
#include "sharpen.h"
#include "squares.h"
#include "tone.h"
#include "warp.h"

#define QPT_OPS(X)                             \
  X(gaussian_blur, blur_bytes)                 \
  X(gaussian_blur_aniso, blur_bytes)           \
  X(motion_blur, blur_bytes)                   \
  X(defocus_blur, blur_bytes)                  \
  X(median_blur, median_bytes)                 \
  X(glass_blur, glass_bytes)                   \
  X(zoom_blur, zoom_bytes)                     \
  X(unsharp_mask, sharpen_bytes)               \
  X(gaussian_noise, noise_bytes)               \
  X(gaussian_noise_grey, noise_bytes)          \
  X(gaussian_noise_ycbcr, noise_bytes)         \
  X(speckle_noise, noise_bytes)                \
  X(impulse_noise, noise_bytes)                \
  X(poisson_noise, photon_bytes)               \
  X(jpeg, jpeg_bytes)                          \
  X(poisson_noise_grey, photon_bytes)          \
  X(gaussian_noise_cov, noise_bytes)           \
  X(iso_noise, iso_bytes)                      \
  X(box_blur, box_bytes)                       \
  X(generalised_blur, blur_bytes)              \
  X(plateau_blur, blur_bytes)                  \
  X(sinc_filter, blur_bytes)                   \
  X(high_sharpen, sharpen_bytes)               \
  X(bilateral, bilateral_bytes)                \
  X(denoise, denoise_bytes)                    \
  X(jpeg2000, jpeg2000_bytes)                  \
  X(rescale_nearest, rescale_bytes)            \
  X(rescale_bilinear, rescale_bytes)           \
  X(rescale_bicubic, rescale_bytes)            \
  X(pixelate, rescale_bytes)                   \
  X(resize_to, resize_bytes)                   \
  X(spatial_jitter, noise_bytes)               \
  X(non_eccentricity_patch, no_bytes)          \
  X(colour_block, no_bytes)                    \
  X(rescale_area, area_bytes)                  \
  X(rescale_lanczos, rescale_bytes)            \
  X(elastic, elastic_bytes)                    \
  X(brightness, colour_bytes)                  \
  X(mean_shift, tone_bytes)                    \
  X(gamma, tone_bytes)                         \
  X(contrast, colour_bytes)                    \
  X(contrast_curve, tone_bytes)                \
  X(saturation, colour_bytes)                  \
  X(hue, colour_bytes)                         \
  X(quantise, tone_bytes)                      \
  X(colour_diffusion, sharpen_bytes)           \
  X(colour_shift, no_bytes)                    \
  X(chroma, lab_bytes)                         \
  X(value_shift, no_bytes)                     \
  X(brightness_curve, lab_bytes)               \
  X(posterise, no_bytes)                       \
  X(dither, no_bytes)                          \
  X(chromatic_aberration, no_bytes)            \
  X(motion_trail, trail_bytes)                 \
  X(glass_shuffle, glass_shuffle_bytes)        \
  X(rescale_nearest_floor, no_bytes)           \
  X(repeated_jitter, jitter_bytes)             \
  X(patch_shuffle, shuffle_bytes)              \
  X(saturation_affine, no_bytes)               \
  X(tone_cubic, tone_bytes)                    \
  X(quantise_stretched, stretch_bytes)         \
  X(colour_diffusion_lab, lab_diffusion_bytes) \
  X(colour_shift_edges, edge_bytes)
