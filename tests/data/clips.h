/* Clips for the tests of video: made with the ffmpeg program, and read back with it as another way
 * to the same pixels. */
#pragma once

#include "data/video.h"
#include "tests/data/scratch.h"

#include <math.h>

/* Runs a command in `folder`, which must succeed. */
__attribute__((format(printf, 2, 3))) static inline void clips_run(const char *folder,
                                                                   const char *format, ...) {
    char text[2000];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    CHECK(n > 0 && (size_t)n < sizeof text, "%s", format);
    char *command = xprintf("cd '%s' && %s", folder, text);
    CHECK(!system(command), "%s (is the ffmpeg program there? launch/setup installs it)", command);
    free(command);
}

#define FFMPEG "ffmpeg -nostdin -y -v error "
/* The flags of data/video_scale.c. */
#define RESIZE "flags=bicubic+accurate_rnd+full_chroma_int"

/* The first frames of a clip through the ffmpeg program and a filter: u8 [3,T,H,W] as video_read
 * orders it. */
static inline uint8_t *clips_reference(const char *folder, const char *clip, const char *filter,
                                       int64_t frames, int64_t height, int64_t width) {
    static const int GBR[3] = {2, 0, 1};
    size_t n, area = (size_t)(height * width);
    clips_run(folder,
              FFMPEG "-threads 1 -i '%s' -vf '%s,format=gbrp' -fps_mode passthrough "
                     "-frames:v %d -f rawvideo reference.raw",
              clip, filter, (int)frames);
    char *path = xprintf("%s/reference.raw", folder);
    uint8_t *raw = scratch_read(path, &n), *pixels = xcalloc(n, 1);
    CHECK(n == 3 * area * (size_t)frames, "%s: %zu bytes", clip, n);
    for (size_t t = 0; t < (size_t)frames; t++)
        for (size_t c = 0; c < 3; c++)
            memcpy(pixels + (c * (size_t)frames + t) * area, raw + (3 * t + (size_t)GBR[c]) * area,
                   area);
    free(raw);
    free(path);
    return pixels;
}

/* Decibels between pixels in [-1,1] and bytes. */
static inline double clips_psnr(const float *pixels, const uint8_t *bytes, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = ((double)pixels[i] + 1) * 127.5 - bytes[i];
        sum += d * d;
    }
    return sum > 0 ? 10 * log10(255.0 * 255.0 * (double)n / sum) : 99;
}
