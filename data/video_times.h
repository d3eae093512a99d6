/* When each frame of a file is shown, and which of them a window takes. Private to data/video*. */
#pragma once

#include "data/video_source.h"

typedef struct {
    int64_t pts, dts; /* in the stream's time base; dts is of key frames only */
    bool key;         /* decoding can begin here for all frames from this time on */
} FrameTime;

typedef struct {
    FrameTime *frames; /* [n] in order of presentation, no time twice */
    int64_t n;
    int64_t room;
    int64_t last_duration; /* 0: unknown */
    double unit;           /* seconds of the time base */
    bool seekable;         /* keys are known: decoding can begin elsewhere than at the beginning */
} FrameTimes;

/* Reads the whole file: packets only where the container states the time of every frame, else it
 * decodes. Leaves the source at its end. */
bool times_scan(FrameTimes *t, Source *s, Error *e);
void times_free(FrameTimes *t);

/* seconds, last_second, fps, frames. */
bool times_describe(const FrameTimes *t, VideoInfo *info, Error *e);

/* The frame nearest to `seconds` after the first; of two the earlier. Searches from *at on. */
int64_t times_nearest(const FrameTimes *t, double seconds, int64_t at);
/* The last frame at or before frame i at which decoding can begin. */
int64_t times_key(const FrameTimes *t, int64_t i);
