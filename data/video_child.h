/* What a VideoReader and its decoding process say to each other. Private to data/video*.
 *
 * The process is this program executed anew under the name VIDEO_CHILD_NAME, with a socket as
 * descriptor VIDEO_CHILD_SOCKET. For every request, which brings the file and the shared memory as
 * descriptors, it forks; the fork enters the sandbox, decodes and ends, and its wait status goes
 * back as an int. So no file meets a process that another file has touched.
 */
#pragma once

#include "data/sandbox.h"
#include "data/video.h"

extern const char VIDEO_CHILD_NAME[];
enum { VIDEO_CHILD_SOCKET = 3 };

typedef enum { VIDEO_PROBE, VIDEO_READ, IMAGE_PROBE, IMAGE_READ } VideoTask;

static inline bool video_task_image(VideoTask t) { return t == IMAGE_PROBE || t == IMAGE_READ; }

typedef struct {
    VideoTask task;
    int64_t file_bytes;
    int64_t shared_bytes;
    VideoWant want;
    int64_t window;
    VideoLimits limits;
} VideoRequest;

/* At the beginning of the shared memory; at VIDEO_PIXELS follow u8 pixels [3,T,H,W]. What the
 * decoder wrote is not to be trusted: no enum, bool or pointer is in it. */
typedef struct {
    int32_t exit_code; /* 0, EXIT_DATA or EXIT_WORLD; VIDEO_UNFINISHED until it is known */
    char text[sizeof(((Error *)0)->text)];
    VideoInfo info;
    VideoClip clip;
} VideoReply;

enum { VIDEO_UNFINISHED = -1, VIDEO_PIXELS = 4096 };
