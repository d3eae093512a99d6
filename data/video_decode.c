/* Owns what the decoding process does with one file: its times, then the frames of one window. */
#include "data/video_decode.h"
#include "data/video_times.h"

#include <string.h>

/* One task on one file. */
typedef struct {
    const VideoRequest *request;
    Source source;
    FrameTimes times;
    Scaler scaler; /* of width 0 until the first frame is written */
    VideoReply *reply;
    uint8_t *pixels;
} Job;

/* The planes of frame k in pixels [3,T,H,W]. */
static void planes_of(const Job *j, int64_t k, uint8_t *planes[3]) {
    const VideoWant *w = &j->request->want;
    int64_t area = w->height * w->width;
    for (int64_t c = 0; c < 3; c++) planes[c] = j->pixels + (c * w->frames + k) * area;
}

/* The first frame that is written describes the clip. */
static bool begin_writing(Job *j, Error *e) {
    const VideoWant *w = &j->request->want;
    j->scaler = (Scaler){
        .height = w->height, .width = w->width, .max_pixels = j->request->limits.max_pixels};
    source_aspect(&j->source, &j->scaler.aspect_num, &j->scaler.aspect_den);
    return source_orientation(&j->source, &j->scaler.orientation, e) &&
           source_describe(&j->source, &j->reply->info, e);
}

static bool write_frame(Job *j, int64_t k, Error *e) {
    uint8_t *planes[3];
    if (!j->scaler.width && !begin_writing(j, e)) return false;
    planes_of(j, k, planes);
    return scaler_frame(&j->scaler, j->source.frame, planes, e);
}

static void repeat_frame(const Job *j, int64_t k) {
    uint8_t *before[3], *now[3];
    planes_of(j, k - 1, before);
    planes_of(j, k, now);
    for (int c = 0; c < 3; c++)
        memcpy(now[c], before[c], (size_t)(j->request->want.height * j->request->want.width));
}

/* Decodes until frame `wanted` of the table is in source.frame. Frames from `from` on that are not
 * wanted must be clean too: others are made of them. */
static bool reach(Job *j, int64_t from, int64_t wanted, Error *e) {
    Source *s = &j->source;
    const FrameTime *frames = j->times.frames;
    double at = (double)(frames[wanted].pts - frames[0].pts) * j->times.unit;
    SourceStep step;
    while ((step = source_frame(s, e)) == SOURCE_GOT) {
        if (s->pts < frames[from].pts) continue;
        if (!source_clean(s) || s->pts > frames[wanted].pts)
            return error_set(e, EXIT_DATA, "is damaged: its frame at %.3f s %s", at,
                             source_clean(s) ? "is missing" : "does not decode cleanly");
        if (s->pts == frames[wanted].pts) return true;
    }
    if (step == SOURCE_FAILED) return false;
    return error_set(e, EXIT_DATA, "is damaged or cut off: its frame at %.3f s is missing", at);
}

/* The window that begins at frame `start` of the wanted rate, from where the source is, which is
 * frame `from` of the table. */
static bool read_from(Job *j, int64_t start, int64_t from, Error *e) {
    const VideoWant *w = &j->request->want;
    for (int64_t k = 0, now = -1, next = from; k < w->frames; k++) {
        next = times_nearest(&j->times, (double)(start + k) / w->fps, next);
        if (next == now)
            repeat_frame(j, k);
        else if (!reach(j, from, next, e) || !write_frame(j, k, e))
            return false;
        now = next;
    }
    return true;
}

static bool read_window(Job *j, int64_t start, Error *e) {
    const FrameTimes *t = &j->times;
    if (t->seekable) {
        int64_t key = times_key(t, times_nearest(t, (double)start / j->request->want.fps, 0));
        const FrameTime *from = &t->frames[key];
        if (source_seek(&j->source, from->pts, from->dts) && read_from(j, start, key, e))
            return true;
    } /* an index that lies costs time, not the clip */
    return source_rewind(&j->source, e) && read_from(j, start, 0, e);
}

static bool too_short(const VideoInfo *i, const VideoWant *w, Error *e) {
    int64_t n = video_frames_at(i, w->fps);
    return error_set(e, EXIT_DATA,
                     "is too short: %.3f s long, which is %lld frame%s at %g a second; %lld frames "
                     "(%.3f s) are needed. Take a longer clip, or fewer frames",
                     i->seconds, (long long)n, n == 1 ? "" : "s", w->fps, (long long)w->frames,
                     (double)w->frames / w->fps);
}

/* A frame that is not wanted itself: it tells size, rotation and colours. */
static bool describe_first(Job *j, Error *e) {
    if (!source_rewind(&j->source, e)) return false;
    return reach(j, 0, 0, e) && source_describe(&j->source, &j->reply->info, e);
}

static bool decode_video(Job *j, Error *e) {
    const VideoWant *w = &j->request->want;
    VideoInfo *info = &j->reply->info;
    if (!times_scan(&j->times, &j->source, e) || !times_describe(&j->times, info, e)) return false;
    if (j->request->task == VIDEO_PROBE) return describe_first(j, e);
    int64_t n = video_windows(info, w), window = j->request->window;
    if (!n) return too_short(info, w, e);
    if (window >= n)
        return error_set(e, EXIT_DATA, "has %lld windows, and number %lld is wanted", (long long)n,
                         (long long)window + 1);
    int64_t slack = video_frames_at(info, w->fps) - w->frames;
    int64_t start = video_window_start(slack, n, window);
    j->reply->clip = (VideoClip){start, (double)start / w->fps};
    return read_window(j, start, e);
}

static bool decode_image(Job *j, Error *e) {
    SourceStep step = source_frame(&j->source, e);
    if (step == SOURCE_END) return error_set(e, EXIT_DATA, "is damaged or cut off");
    if (step == SOURCE_FAILED) return false;
    if (!source_clean(&j->source)) return error_set(e, EXIT_DATA, "is damaged");
    j->reply->info.frames = 1;
    return j->request->task == IMAGE_READ ? write_frame(j, 0, e)
                                          : source_describe(&j->source, &j->reply->info, e);
}

bool video_decode(int fd, const VideoRequest *request, VideoReply *reply, uint8_t *pixels,
                  Error *e) {
    Job j = {.request = request, .reply = reply, .pixels = pixels};
    bool ok = source_open(&j.source, fd, request, e);
    if (ok) ok = video_task_image(request->task) ? decode_image(&j, e) : decode_video(&j, e);
    scaler_close(&j.scaler);
    times_free(&j.times);
    source_close(&j.source);
    return ok;
}
