/* Tables that follow from sizes and timesteps alone, as diffusers computes them: each step is
 * rounded to the type that diffusers uses, so that the values agree to the last bits. */
#pragma once

#include "trainer/dit_config.h"

/* The sinusoid of a timestep or ofs value: out [dim] = cos | sin of value * exp(-ln(10000) i /
 * (dim/2 - shift)), in f32 (Ho et al. 2020, with diffusers' order of halves). */
void timestep_sinusoid(double value, int64_t dim, bool cos_first, double shift, float *out);

/* 3-D rotary table of one sample's video rows (f,h,w): out [V,E], E/2 pairs (cos, sin). Without
 * patch_size_t the grid is the native one, resized and cropped ("linspace"); with it, integers. */
void rotary_table(const DitConfig *c, int64_t f, int64_t h, int64_t w, float *out);
/* The same for rows that do not turn: pairs (1, 0). */
void rotary_identity(int64_t rows, int64_t head_size, float *out);

/* One axis of the 3-D sincos table: out [count, dim] = sin | cos of (i / scale) * 10000^(-2k/dim),
 * f64 products. The axes are frames (D/4, temporal_scale), width (3D/8) and height (3D/8). */
void sincos_axis(int64_t count, int64_t dim, double scale, double *out);
