/* One open file as a stream of frames: container, codec and their limits. Runs inside the sandbox.
 * Private to data/video*. */
#pragma once

#include "data/video_child.h"
#include "data/video_scale.h"

typedef struct {
    int fd;
    int64_t file_bytes, at;
    bool image;
    const VideoLimits *limits;
    struct AVIOContext *io;
    struct AVFormatContext *format;
    struct AVStream *stream;
    struct AVCodecContext *codec;
    struct AVPacket *packet;
    struct AVFrame *frame; /* what source_frame gave last */
    int64_t pts;           /* of that frame */
    bool timed;            /* pts is known */
    bool draining, seen_key;
} Source;

/* Opens container and codec of the file behind `fd`, at its beginning. */
bool source_open(Source *s, int fd, const VideoRequest *request, Error *e);
void source_close(Source *s);
/* Back to the first packet: closes and opens. */
bool source_rewind(Source *s, Error *e);

/* What one step gave. A step that fails sets *e. */
typedef enum { SOURCE_FAILED, SOURCE_END, SOURCE_GOT } SourceStep;

/* The next packet of the stream into s->packet, without decoding it. */
SourceStep source_packet(Source *s, Error *e);
/* The next frame in order of presentation into s->frame. One of unknown time follows the one
 * before; one that has errors is given too: see source_clean. */
SourceStep source_frame(Source *s, Error *e);
bool source_clean(const Source *s);

/* Moves to a key frame at or before both time stamps; false: the container cannot. */
bool source_seek(Source *s, int64_t pts, int64_t dts);

/* How the last frame is to be turned, and the shape of its pixels. */
bool source_orientation(const Source *s, Orientation *o, Error *e);
void source_aspect(const Source *s, int *num, int *den);
/* Fills names and sizes, but no times. */
bool source_describe(const Source *s, VideoInfo *info, Error *e);
