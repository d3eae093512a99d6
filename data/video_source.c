/* Owns the use of libavformat and libavcodec for reading. */
#define _XOPEN_SOURCE 700
#include "data/video_source.h"

#include <errno.h>
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/pixdesc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Containers that hold their data themselves; none that names other files. */
#define VIDEO_CONTAINERS                                                                           \
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,"  \
    "obu,ivf,flv,asf,ogg,mxf,nut,dv,gxf,rm,wtv,swf,yuv4mpegpipe,vc1,mjpeg"
#define IMAGE_CONTAINERS "png_pipe,jpeg_pipe"

enum { IO_BYTES = 1 << 16, MAX_STREAMS = 64, MAX_ALLOCATION = 1 << 30 };

static char last_log[160];
static bool ended_early; /* Matroska's demuxer tells a cut file from a whole one in its log only */

static void remember_log(void *context, int level, const char *format, va_list args) {
    (void)context;
    if (level > AV_LOG_ERROR) return;
    ended_early |= strstr(format, "ended prematurely") != NULL;
    vsnprintf(last_log, sizeof last_log, format, args);
    last_log[strcspn(last_log, "\n")] = 0;
}

/* Sets *e to `what`, libav's reason for `code`, and what libav logged last. Returns false. */
static bool source_error(Error *e, const char *what, int code) {
    char reason[AV_ERROR_MAX_STRING_SIZE] = "";
    if (code == AVERROR(ENOMEM))
        snprintf(reason, sizeof reason, "more memory than a file may have");
    else
        av_strerror(code, reason, sizeof reason);
    return error_set(e, EXIT_DATA, "%s: %s%s%s%s", what, reason, *last_log ? " (" : "", last_log,
                     *last_log ? ")" : "");
}

static int io_read(void *context, uint8_t *buffer, int n) {
    Source *s = context;
    ssize_t got;
    do got = pread(s->fd, buffer, (size_t)n, s->at);
    while (got < 0 && errno == EINTR);
    if (got < 0) return AVERROR(errno);
    if (!got) return AVERROR_EOF;
    s->at += got;
    return (int)got;
}

static int64_t io_seek(void *context, int64_t to, int whence) {
    Source *s = context;
    whence &= ~AVSEEK_FORCE;
    if (whence == AVSEEK_SIZE) return s->file_bytes;
    if (whence == SEEK_CUR) to += s->at;
    if (whence == SEEK_END) to += s->file_bytes;
    if (to < 0) return AVERROR(EINVAL);
    return s->at = to;
}

/* A container that wants another file does not get it. */
static int refuse_io(AVFormatContext *f, AVIOContext **io, const char *url, int flags,
                     AVDictionary **options) {
    (void)f, (void)io, (void)url, (void)flags, (void)options;
    return AVERROR(EPERM);
}

static bool open_container(Source *s, Error *e) {
    uint8_t *buffer = av_malloc(IO_BYTES);
    s->format = avformat_alloc_context();
    s->io = buffer ? avio_alloc_context(buffer, IO_BYTES, 0, s, io_read, NULL, io_seek) : NULL;
    if (!s->format || !s->io) return source_error(e, "needs too much", AVERROR(ENOMEM));
    s->format->pb = s->io;
    s->format->io_open = refuse_io;
    s->format->flags |= AVFMT_FLAG_CUSTOM_IO;
    s->format->max_streams = MAX_STREAMS;
    s->format->protocol_whitelist = av_strdup("none");
    s->format->format_whitelist = av_strdup(s->image ? IMAGE_CONTAINERS : VIDEO_CONTAINERS);
    int code = avformat_open_input(&s->format, "", NULL, NULL); /* on failure frees the context */
    if (code >= 0) return true;
    return source_error(
        e, s->image ? "is not a PNG or JPEG picture" : "is not a video that can be read", code);
}

static bool too_many_pixels(const Source *s, int64_t width, int64_t height, Error *e) {
    if (width <= 0 || height <= 0 || width * height <= s->limits->max_pixels) return false;
    error_set(e, EXIT_DATA, "is %lldx%lld, more pixels than the %lld that cogsmith decodes",
              (long long)width, (long long)height, (long long)s->limits->max_pixels);
    return true;
}

/* Learns what the header does not tell from the first packets, within the same limits. */
static bool study_streams(Source *s, Error *e) {
    char pixels[24];
    unsigned n = s->format->nb_streams;
    AVDictionary **options = calloc(n ? n : 1, sizeof *options);
    if (!options) return source_error(e, "needs too much", AVERROR(ENOMEM));
    snprintf(pixels, sizeof pixels, "%lld", (long long)s->limits->max_pixels);
    for (unsigned i = 0; i < n; i++) av_dict_set(&options[i], "max_pixels", pixels, 0);
    int code = avformat_find_stream_info(s->format, options);
    for (unsigned i = 0; i < n; i++) av_dict_free(&options[i]);
    free(options);
    return code >= 0 ? true : source_error(e, "cannot be read", code);
}

static bool choose_stream(Source *s, Error *e) {
    for (unsigned i = 0; i < s->format->nb_streams; i++) {
        const AVCodecParameters *p = s->format->streams[i]->codecpar;
        if (too_many_pixels(s, p->width, p->height, e)) return false;
    }
    if (!study_streams(s, e)) return false;
    int at = av_find_best_stream(s->format, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (at < 0 || s->format->streams[at]->disposition & AV_DISPOSITION_ATTACHED_PIC)
        return error_set(e, EXIT_DATA, "has no video in it, only %s",
                         s->format->nb_streams ? "sound or other data" : "a header");
    s->stream = s->format->streams[at];
    const AVCodecParameters *p = s->stream->codecpar;
    if (too_many_pixels(s, p->width, p->height, e)) return false;
    for (unsigned i = 0; i < s->format->nb_streams; i++)
        if ((int)i != at) s->format->streams[i]->discard = AVDISCARD_ALL;
    return true;
}

static bool open_codec(Source *s, Error *e) {
    const AVCodecParameters *p = s->stream->codecpar;
    const AVCodec *codec = avcodec_find_decoder(p->codec_id);
    if (!codec)
        return error_set(e, EXIT_DATA, "is coded as %s, which this FFmpeg does not decode",
                         avcodec_get_name(p->codec_id));
    s->codec = avcodec_alloc_context3(codec);
    s->packet = av_packet_alloc();
    s->frame = av_frame_alloc();
    if (!s->codec || !s->packet || !s->frame)
        return source_error(e, "needs too much", AVERROR(ENOMEM));
    int code = avcodec_parameters_to_context(s->codec, p);
    s->codec->thread_count = 1; /* one decoder a core scales better, and the sandbox forbids it */
    s->codec->pkt_timebase = s->stream->time_base;
    s->codec->max_pixels = s->limits->max_pixels;
    s->codec->err_recognition = AV_EF_CRCCHECK | (s->image ? AV_EF_EXPLODE : 0);
    if (code >= 0) code = avcodec_open2(s->codec, codec, NULL);
    return code >= 0 ? true : source_error(e, "has video that cannot be decoded", code);
}

static bool open_all(Source *s, Error *e) {
    return open_container(s, e) && choose_stream(s, e) && open_codec(s, e);
}

bool source_open(Source *s, int fd, const VideoRequest *request, Error *e) {
    *s = (Source){.fd = fd,
                  .file_bytes = request->file_bytes,
                  .image = video_task_image(request->task),
                  .limits = &request->limits};
    av_log_set_callback(remember_log);
    av_max_alloc(MAX_ALLOCATION);
    return open_all(s, e);
}

void source_close(Source *s) {
    av_frame_free(&s->frame);
    av_packet_free(&s->packet);
    avcodec_free_context(&s->codec);
    avformat_close_input(&s->format);
    if (s->io) av_freep(&s->io->buffer);
    avio_context_free(&s->io);
    s->stream = NULL;
}

bool source_rewind(Source *s, Error *e) {
    source_close(s);
    s->at = 0;
    s->draining = s->seen_key = s->timed = false;
    return open_all(s, e);
}

SourceStep source_packet(Source *s, Error *e) {
    int code;
    for (;;) {
        av_packet_unref(s->packet);
        code = av_read_frame(s->format, s->packet);
        if (code == AVERROR_EOF && !ended_early) return SOURCE_END;
        if (code < 0) break;
        if (s->packet->stream_index != s->stream->index) continue;
        s->seen_key |= s->packet->flags & AV_PKT_FLAG_KEY;
        if (!s->seen_key) continue; /* the end of something that was cut: no decoder can start */
        if (!(s->packet->flags & AV_PKT_FLAG_CORRUPT)) return SOURCE_GOT;
        code = AVERROR_INVALIDDATA;
        break;
    }
    source_error(e, "is damaged or cut off", code);
    return SOURCE_FAILED;
}

/* Containers such as AVI do not tell the time of every frame. */
static void take_time(Source *s, int64_t before_duration) {
    int64_t pts = s->frame->best_effort_timestamp;
    if (pts == AV_NOPTS_VALUE) pts = s->timed ? s->pts + MAX(1, before_duration) : 0;
    s->pts = pts;
    s->timed = true;
}

SourceStep source_frame(Source *s, Error *e) {
    int64_t duration = s->frame->pkt_duration;
    int code;
    while ((code = avcodec_receive_frame(s->codec, s->frame)) == AVERROR(EAGAIN)) {
        SourceStep step = source_packet(s, e);
        if (step == SOURCE_FAILED) return SOURCE_FAILED;
        s->draining = step == SOURCE_END;
        code = avcodec_send_packet(s->codec, s->draining ? NULL : s->packet);
        if (code < 0) break;
    }
    if (code == AVERROR_EOF) return SOURCE_END;
    if (code >= 0) {
        take_time(s, duration);
        return SOURCE_GOT;
    }
    source_error(e, "has video that cannot be decoded", code);
    return SOURCE_FAILED;
}

bool source_clean(const Source *s) {
    return !s->frame->decode_error_flags && !(s->frame->flags & AV_FRAME_FLAG_CORRUPT);
}

bool source_seek(Source *s, int64_t pts, int64_t dts) {
    int64_t to = dts != AV_NOPTS_VALUE && dts < pts ? dts : pts;
    if (av_seek_frame(s->format, s->stream->index, to, AVSEEK_FLAG_BACKWARD) < 0) return false;
    avcodec_flush_buffers(s->codec);
    s->draining = s->seen_key = s->timed = false;
    return true;
}

/* The display matrix of the frame or of the stream, or NULL. */
static const int32_t *display_matrix(const Source *s) {
    size_t bytes = 0;
    AVFrameSideData *of_frame = av_frame_get_side_data(s->frame, AV_FRAME_DATA_DISPLAYMATRIX);
    const uint8_t *of_stream =
        av_stream_get_side_data(s->stream, AV_PKT_DATA_DISPLAYMATRIX, &bytes);
    if (of_frame && of_frame->size >= 9 * sizeof(int32_t)) return (const int32_t *)of_frame->data;
    return of_stream && bytes >= 9 * sizeof(int32_t) ? (const int32_t *)of_stream : NULL;
}

bool source_orientation(const Source *s, Orientation *o, Error *e) {
    const int32_t *matrix = display_matrix(s);
    const AVDictionaryEntry *exif = av_dict_get(s->frame->metadata, "Orientation", NULL, 0);
    *o = UPRIGHT;
    if (exif && s->image && orientation_from_exif(o, atoi(exif->value))) return true;
    *o = UPRIGHT;
    if (!matrix || orientation_from_matrix(o, matrix)) return true;
    return error_set(e, EXIT_DATA,
                     "is to be shown turned by %.1f degrees; expected a multiple of 90. Turn it "
                     "with the ffmpeg program first",
                     av_display_rotation_get(matrix));
}

void source_aspect(const Source *s, int *num, int *den) {
    AVRational a = av_guess_sample_aspect_ratio(s->format, s->stream, s->frame);
    bool stated = a.num > 0 && a.den > 0;
    *num = stated ? a.num : 1;
    *den = stated ? a.den : 1;
}

bool source_describe(const Source *s, VideoInfo *info, Error *e) {
    Orientation o;
    int num, den;
    const char *pixels = av_get_pix_fmt_name((enum AVPixelFormat)s->frame->format);
    if (!source_orientation(s, &o, e)) return false;
    source_aspect(s, &num, &den);
    info->stored_width = s->frame->width;
    info->stored_height = s->frame->height;
    int64_t width = llround((double)s->frame->width * num / den), height = s->frame->height;
    info->width = MAX(1, o.a ? width : height);
    info->height = MAX(1, o.a ? height : width);
    info->rotation = orientation_degrees(&o);
    info->hdr =
        s->frame->color_trc == AVCOL_TRC_SMPTE2084 || s->frame->color_trc == AVCOL_TRC_ARIB_STD_B67;
    snprintf(info->container, sizeof info->container, "%s", s->format->iformat->name);
    snprintf(info->codec, sizeof info->codec, "%s", avcodec_get_name(s->codec->codec_id));
    snprintf(info->pixel_format, sizeof info->pixel_format, "%s", pixels ? pixels : "");
    return true;
}
