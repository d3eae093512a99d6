/* From a decoded frame to 8-bit RGB planes of the wanted size, upright. Private to data/video*. */
#pragma once

#include "kernels/base.h"

struct AVFrame;

/* Where a stored pixel (p, q) is shown: x = a p + c q, y = b p + d q, moved into the picture. Each
 * of a, b, c, d is -1, 0 or 1. */
typedef struct {
    int a, b, c, d;
} Orientation;

#define UPRIGHT ((Orientation){1, 0, 0, 1})

/* From a display matrix of libavutil; false: not a multiple of 90 degrees. */
bool orientation_from_matrix(Orientation *o, const int32_t matrix[9]);
/* From an EXIF orientation, 1 to 8. */
bool orientation_from_exif(Orientation *o, int exif);
/* Degrees clockwise, mirroring left out. */
int orientation_degrees(const Orientation *o);

typedef struct {
    int64_t height, width; /* wanted */
    int64_t max_pixels;    /* of the picture that covers the wanted size */
    Orientation orientation;
    int aspect_num, aspect_den; /* of a stored pixel */
    struct SwsContext *sws;     /* for frames of the kind below */
    struct AVFrame *scaled;     /* planes G, B, R in the stored orientation */
    int source_width, source_height, format, colorspace, full_range;
} Scaler;

/* Planes red, green and blue [H,W] of one frame. */
bool scaler_frame(Scaler *s, const struct AVFrame *frame, uint8_t *const planes[3], Error *e);
void scaler_close(Scaler *s);
