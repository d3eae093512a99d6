/* The decoding itself, through libavformat and libavcodec; runs inside the sandbox and needs no
 * system call that it forbids. Private to data/video*. */
#pragma once

#include "data/video_child.h"

/* Reads the file open as `fd`, as the request wants it, into *reply and pixels. Errors have no
 * path: the reader puts it before. */
bool video_decode(int fd, const VideoRequest *request, VideoReply *reply, uint8_t *pixels,
                  Error *e);
