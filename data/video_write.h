/* Clips out: an MP4 (H.264 by libx264, yuv420p, BT.709 in limited range and marked so) or a contact
 * sheet (PNG). Files appear whole or not at all (data/whole.h). On one machine the same frames give
 * the same bytes. Errors are EXIT_WORLD.
 *
 *     if (!video_write("ship.mp4", &(Clip8){frames, 49, 480, 720}, 8, &e)) die_error(&e);
 */
#pragma once

#include "kernels/base.h"

typedef struct {
    const uint8_t *rgb; /* [T,H,W,3] */
    int64_t frames, height, width;
} Clip8;

/* Whether this machine's FFmpeg can write one; to be asked before long work. */
bool video_write_ready(Error *e);
/* Height and width must be even. */
bool video_write(const char *path, const Clip8 *clip, double fps, Error *e);

/* At most SHEET_FRAMES frames, spread evenly from the first to the last, in rows of SHEET_COLUMNS,
 * shrunk by a whole number where the sheet would be wider than SHEET_WIDTH. */
enum { SHEET_FRAMES = 12, SHEET_COLUMNS = 4, SHEET_WIDTH = 2400 };
bool sheet_write(const char *path, const Clip8 *clip, Error *e);
