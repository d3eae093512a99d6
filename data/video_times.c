/* Owns the table of presentation times of a file. */
#include "data/video_times.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double SAME_TIME = 1e-6, LONGEST_SECONDS = 1e6;

static bool add(FrameTimes *t, FrameTime frame, Error *e) {
    if (t->n == t->room) {
        int64_t room = t->room ? 2 * t->room : 1024;
        FrameTime *frames = realloc(t->frames, (size_t)room * sizeof *frames);
        if (!frames) return error_set(e, EXIT_DATA, "has too many frames to list");
        t->frames = frames;
        t->room = room;
    }
    t->frames[t->n++] = frame;
    return true;
}

/* Whether one packet is one shown frame, with its own time: known for these two containers and
 * these codecs, unless pictures are halves. */
static bool packets_tell(const Source *s) {
    const char *container = s->format->iformat->name;
    const AVCodecParameters *p = s->stream->codecpar;
    bool progressive = p->field_order == AV_FIELD_PROGRESSIVE ||
                       (p->field_order == AV_FIELD_UNKNOWN && p->codec_id != AV_CODEC_ID_H264);
    return (strstr(container, "mp4") || strstr(container, "matroska")) && progressive &&
           (p->codec_id == AV_CODEC_ID_H264 || p->codec_id == AV_CODEC_ID_HEVC ||
            p->codec_id == AV_CODEC_ID_VP9 || p->codec_id == AV_CODEC_ID_AV1);
}

static int by_time(const void *a, const void *b) {
    const FrameTime *x = a, *y = b;
    return (x->pts > y->pts) - (x->pts < y->pts);
}

/* Sorts, and removes frames that no decoder can show: those of the first key frame that are to be
 * shown before it. */
static void put_in_order(FrameTimes *t) {
    int64_t first = t->n ? t->frames[0].pts : 0, n = 0;
    qsort(t->frames, (size_t)t->n, sizeof *t->frames, by_time);
    for (int64_t i = 0; i < t->n; i++) {
        FrameTime f = t->frames[i];
        if (f.pts < first) continue;
        if (n && t->frames[n - 1].pts == f.pts)
            t->frames[n - 1].key |= f.key;
        else
            t->frames[n++] = f;
    }
    t->n = n;
}

/* *complete: every packet stated its time. */
static bool scan_packets(FrameTimes *t, Source *s, bool *complete, Error *e) {
    SourceStep step;
    int64_t last = INT64_MIN;
    *complete = true;
    while ((step = source_packet(s, e)) == SOURCE_GOT) {
        const AVPacket *p = s->packet;
        if (p->flags & AV_PKT_FLAG_DISCARD) continue;
        if (p->pts == AV_NOPTS_VALUE) return !(*complete = false);
        if (p->pts > last) {
            last = p->pts;
            t->last_duration = p->duration;
        }
        if (!add(t, (FrameTime){p->pts, p->dts, (p->flags & AV_PKT_FLAG_KEY) != 0}, e))
            return false;
    }
    put_in_order(t);
    return step == SOURCE_END;
}

static bool scan_frames(FrameTimes *t, Source *s, Error *e) {
    SourceStep step;
    while ((step = source_frame(s, e)) == SOURCE_GOT) {
        if (t->n && s->pts <= t->frames[t->n - 1].pts)
            return error_set(e, EXIT_DATA,
                             "has time stamps that run backwards after frame %lld. Write it anew "
                             "with the ffmpeg program",
                             (long long)t->n);
        t->last_duration = s->frame->pkt_duration;
        if (!add(t, (FrameTime){.pts = s->pts}, e)) return false;
    }
    return step == SOURCE_END;
}

bool times_scan(FrameTimes *t, Source *s, Error *e) {
    *t = (FrameTimes){.unit = av_q2d(s->stream->time_base), .seekable = packets_tell(s)};
    if (t->seekable && !scan_packets(t, s, &t->seekable, e)) return false;
    if (!t->seekable) {
        t->n = 0;
        if (!source_rewind(s, e) || !scan_frames(t, s, e)) return false;
    }
    return t->n ? true : error_set(e, EXIT_DATA, "has no frame that can be shown");
}

void times_free(FrameTimes *t) {
    free(t->frames);
    *t = (FrameTimes){0};
}

static double seconds_of(const FrameTimes *t, int64_t i) {
    return ((double)t->frames[i].pts - (double)t->frames[0].pts) * t->unit;
}

bool times_describe(const FrameTimes *t, VideoInfo *info, Error *e) {
    double last = seconds_of(t, t->n - 1), duration = (double)t->last_duration * t->unit;
    if (duration <= 0) duration = t->n > 1 ? last / (double)(t->n - 1) : 0;
    info->frames = t->n;
    info->last_second = last;
    info->seconds = last + duration;
    info->fps = info->seconds > 0 ? (double)t->n / info->seconds : 0;
    if (info->seconds >= 0 && info->seconds < LONGEST_SECONDS) return true;
    return error_set(e, EXIT_DATA, "has time stamps that make no sense: %.0f seconds",
                     info->seconds);
}

int64_t times_nearest(const FrameTimes *t, double seconds, int64_t at) {
    while (at + 1 < t->n &&
           fabs(seconds_of(t, at + 1) - seconds) < fabs(seconds_of(t, at) - seconds) - SAME_TIME)
        at++;
    return at;
}

int64_t times_key(const FrameTimes *t, int64_t i) {
    while (i > 0 && !t->frames[i].key) i--;
    return i;
}
