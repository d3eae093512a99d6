/* Clips in: from a video file of any common container and codec to the frames that training takes.
 *
 * Decoding happens in a process of its own, one per VideoReader, which gets an open file and may do
 * nothing but read it (data/sandbox.h): a file that crashes, hangs or takes over the decoder costs
 * that file and no more. Frames come back through shared memory of a size that the reader chose.
 *
 * Frames are chosen by time stamps. A clip is resampled to `fps` frames a second from its first
 * frame on; each output frame is the source frame whose presentation time is nearest (of two
 * equally near the earlier). Rotation metadata and the shape of pixels are honoured; the picture is
 * resized to cover the wanted size (bicubic) and its centre is cut out. Colours come from the
 * matrix and range that the file states; where it states none, BT.601 and limited range, as the
 * ffmpeg program has it. More than 8 bits are rounded to 8, transparency is dropped.
 *
 * Strict: a file that is cut off, or a wanted frame that does not decode cleanly, is an error.
 *
 *     Error e;
 *     VideoReader *r = video_reader_open(NULL, &e);
 *     VideoInfo info;
 *     if (!r || !video_probe(r, "ship.mp4", &info, &e)) die_error(&e);
 *     VideoWant want = {.frames = 49, .height = 480, .width = 720, .fps = 8, .windows = 3};
 *     for (int i = 0; i < video_windows(&info, &want); i++)
 *         if (!video_read(r, "ship.mp4", &want, i, pixels, NULL, &e)) ...
 *     video_reader_close(r);
 *
 * Errors name the file. EXIT_DATA: this file cannot be used; EXIT_WORLD: this machine cannot start
 * a decoder, or is out of memory. After either the reader is good for the next file.
 */
#pragma once

#include "kernels/base.h"

enum { VIDEO_MAX_FRAMES = 4096, VIDEO_MAX_SIDE = 8192, VIDEO_MAX_WINDOWS = 4096 };

/* What one file may cost. */
typedef struct {
    double seconds;       /* of wall clock; 0: every file is late */
    int64_t cpu_seconds;  /* of computing */
    int64_t memory_bytes; /* of the decoder */
    int64_t max_pixels;   /* of one source frame */
} VideoLimits;

#define VIDEO_LIMITS                                                                               \
    ((VideoLimits){.seconds = 120,                                                                 \
                   .cpu_seconds = 120,                                                             \
                   .memory_bytes = (int64_t)4 << 30,                                               \
                   .max_pixels = 1 << 26})

/* What is in a file. */
typedef struct {
    double seconds;        /* from the first frame to the end of the last */
    double last_second;    /* when the last frame begins */
    double fps;            /* frames / seconds */
    int64_t frames;        /* that can be shown */
    int64_t width, height; /* as shown: rotated, with square pixels */
    int64_t stored_width, stored_height;
    int32_t rotation; /* degrees clockwise: 0, 90, 180, 270 */
    int32_t hdr;      /* 1: PQ or HLG, which is read as if it were not: looks flat */
    char container[32], codec[32], pixel_format[32];
} VideoInfo;

/* What is wanted of a clip. */
typedef struct {
    int64_t frames, height, width;
    double fps;
    int64_t
        windows; /* pieces taken of a clip that is longer: 1 takes the middle, n spread evenly */
} VideoWant;

/* Which piece of the clip a window was. */
typedef struct {
    int64_t first_frame; /* in frames of the wanted rate */
    double first_second;
} VideoClip;

/* One decoding process; for one thread at a time. Several readers work side by side. */
typedef struct VideoReader VideoReader;

/* limits NULL: VIDEO_LIMITS. NULL: *e (EXIT_WORLD). The program must be able to execute itself
 * through /proc/self/exe. */
VideoReader *video_reader_open(const VideoLimits *limits, Error *e);
/* Also right for NULL. */
void video_reader_close(VideoReader *r);
/* The process group of the decoder, for tests; 0: none runs now. */
int video_reader_group(const VideoReader *r);

bool video_probe(VideoReader *r, const char *path, VideoInfo *info, Error *e);

/* How many frames a clip has at another rate. */
int64_t video_frames_at(const VideoInfo *info, double fps);
/* How many different windows a clip has, at most want->windows; 0: it is too short. */
int64_t video_windows(const VideoInfo *info, const VideoWant *want);
/* Where window i of n begins when `slack` frames are left over. */
int64_t video_window_start(int64_t slack, int64_t n, int64_t i);

/* pixels [3,T,H,W] in [-1,1] (red, green, blue; x / 127.5 - 1) of window `window`; clip may be
 * NULL. A clip too short is EXIT_DATA and says its length and what is needed. */
bool video_read(VideoReader *r, const char *path, const VideoWant *want, int64_t window,
                float *pixels, VideoClip *clip, Error *e);
