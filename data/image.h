/* Pictures in: PNG and JPEG, decoded by the same process and cut to size in the same way as clips
 * (data/video.h). A JPEG's EXIF orientation is honoured. */
#pragma once

#include "data/video.h"

/* pixels [3,H,W] in [-1,1]. */
bool image_read(VideoReader *r, const char *path, int64_t height, int64_t width, float *pixels,
                Error *e);
/* Its size as shown, codec and pixel format. */
bool image_probe(VideoReader *r, const char *path, VideoInfo *info, Error *e);
