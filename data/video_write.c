/* Owns the use of libavformat and libavcodec for writing. */
#define _XOPEN_SOURCE 700
#include "data/video_write.h"

#include "data/whole.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

static const char ENCODER[] = "libx264";
static const char CRF[] = "15"; /* hardly to be told from the frames */

static bool av_failed(Error *e, const char *path, const char *what, int code) {
    char reason[AV_ERROR_MAX_STRING_SIZE] = "";
    av_strerror(code, reason, sizeof reason);
    return error_set(e, EXIT_WORLD, "%.300s: %s: %s", path, what, reason);
}

static bool write_whole(const char *path, const void *bytes, size_t n, Error *e) {
    WholeFile f;
    if (!whole_open(&f, path, e)) return false;
    return whole_write(&f, bytes, n, e) ? whole_commit(&f, e) : whole_discard(&f);
}

/* ---- MP4 --------------------------------------------------------------------------------------
 */

/* A file being made in memory. */
typedef struct {
    const char *path; /* for error texts */
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream; /* the format's */
    struct SwsContext *sws;
    AVFrame *frame;
    AVPacket *packet;
} Writer;

bool video_write_ready(Error *e) {
    return avcodec_find_encoder_by_name(ENCODER) ||
           error_set(e, EXIT_WORLD,
                     "this machine's FFmpeg has no %s, which writes MP4; a contact sheet (.png) "
                     "needs none",
                     ENCODER);
}

static bool open_codec(Writer *w, const Clip8 *clip, double fps, Error *e) {
    if (!video_write_ready(e)) return false;
    const AVCodec *codec = avcodec_find_encoder_by_name(ENCODER);
    w->codec = avcodec_alloc_context3(codec);
    if (!w->codec) return av_failed(e, w->path, "libx264", AVERROR(ENOMEM));
    AVCodecContext *c = w->codec;
    c->width = (int)clip->width;
    c->height = (int)clip->height;
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->framerate = av_d2q(fps, 1 << 20);
    c->time_base = av_inv_q(c->framerate);
    c->sample_aspect_ratio = (AVRational){1, 1};
    c->colorspace = AVCOL_SPC_BT709;
    c->color_primaries = AVCOL_PRI_BT709;
    c->color_trc = AVCOL_TRC_BT709;
    c->color_range = AVCOL_RANGE_MPEG;
    c->chroma_sample_location = AVCHROMA_LOC_LEFT;
    c->thread_count = 1; /* the bytes depend on it */
    c->flags |= AV_CODEC_FLAG_BITEXACT;
    if (w->format->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    av_opt_set(c->priv_data, "crf", CRF, 0);
    av_opt_set(c->priv_data, "preset", "medium", 0);
    int code = avcodec_open2(c, codec, NULL);
    return code >= 0 || av_failed(e, w->path, "libx264", code);
}

static bool open_stream(Writer *w, Error *e) {
    w->stream = avformat_new_stream(w->format, NULL);
    if (!w->stream) return av_failed(e, w->path, "mp4", AVERROR(ENOMEM));
    w->stream->time_base = w->codec->time_base;
    w->stream->avg_frame_rate = w->codec->framerate;
    w->stream->sample_aspect_ratio = w->codec->sample_aspect_ratio;
    int code = avcodec_parameters_from_context(w->stream->codecpar, w->codec);
    if (code >= 0) code = avio_open_dyn_buf(&w->format->pb);
    if (code >= 0) code = avformat_write_header(w->format, NULL);
    return code >= 0 || av_failed(e, w->path, "mp4", code);
}

/* From R'G'B' in full range to BT.709 in limited range. */
static bool open_scaler(Writer *w, Error *e) {
    const AVCodecContext *c = w->codec;
    w->sws = sws_getContext(c->width, c->height, AV_PIX_FMT_RGB24, c->width, c->height, c->pix_fmt,
                            SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_BITEXACT,
                            NULL, NULL, NULL);
    w->frame = av_frame_alloc();
    w->packet = av_packet_alloc();
    if (!w->sws || !w->frame || !w->packet) return av_failed(e, w->path, "mp4", AVERROR(ENOMEM));
    const int *matrix = sws_getCoefficients(SWS_CS_ITU709);
    sws_setColorspaceDetails(w->sws, matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16);
    w->frame->format = c->pix_fmt;
    w->frame->width = c->width;
    w->frame->height = c->height;
    int code = av_frame_get_buffer(w->frame, 0);
    return code >= 0 || av_failed(e, w->path, "mp4", code);
}

static bool open_writer(Writer *w, const Clip8 *clip, double fps, Error *e) {
    int code = avformat_alloc_output_context2(&w->format, NULL, "mp4", NULL);
    if (code < 0) return av_failed(e, w->path, "mp4", code);
    w->format->flags |= AVFMT_FLAG_BITEXACT;
    return open_codec(w, clip, fps, e) && open_stream(w, e) && open_scaler(w, e);
}

/* Gives the encoder a frame (NULL: the end), and the file what it made. */
static bool encode(Writer *w, const AVFrame *frame, Error *e) {
    int code = avcodec_send_frame(w->codec, frame);
    while (code >= 0 && (code = avcodec_receive_packet(w->codec, w->packet)) >= 0) {
        w->packet->duration = 1;
        av_packet_rescale_ts(w->packet, w->codec->time_base, w->stream->time_base);
        w->packet->stream_index = w->stream->index;
        code = av_write_frame(w->format, w->packet);
        av_packet_unref(w->packet);
    }
    return code == AVERROR(EAGAIN) || code == AVERROR_EOF ||
           av_failed(e, w->path, "encoding", code);
}

static bool encode_clip(Writer *w, const Clip8 *clip, Error *e) {
    for (int64_t t = 0; t < clip->frames; t++) {
        const uint8_t *rgb[1] = {clip->rgb + t * clip->height * clip->width * 3};
        const int stride[1] = {(int)clip->width * 3};
        int code = av_frame_make_writable(w->frame);
        if (code < 0) return av_failed(e, w->path, "encoding", code);
        sws_scale(w->sws, rgb, stride, 0, (int)clip->height, w->frame->data, w->frame->linesize);
        w->frame->pts = t;
        if (!encode(w, w->frame, e)) return false;
    }
    if (!encode(w, NULL, e)) return false;
    int code = av_write_trailer(w->format);
    return code >= 0 || av_failed(e, w->path, "mp4", code);
}

/* Ends the writer; *bytes [return value] is the caller's, to be freed by av_free. */
static int close_writer(Writer *w, uint8_t **bytes) {
    *bytes = NULL;
    int n = w->format && w->format->pb ? avio_close_dyn_buf(w->format->pb, bytes) : 0;
    sws_freeContext(w->sws);
    av_frame_free(&w->frame);
    av_packet_free(&w->packet);
    avcodec_free_context(&w->codec);
    avformat_free_context(w->format);
    return n;
}

bool video_write(const char *path, const Clip8 *clip, double fps, Error *e) {
    Writer w = {.path = path};
    uint8_t *bytes;
    CHECK(clip->frames > 0 && clip->height > 0 && clip->width > 0 && fps > 0, "%s", path);
    if (clip->height % 2 || clip->width % 2)
        return error_set(e, EXIT_WORLD, "%.300s: %lld x %lld: expected an even height and width",
                         path, (long long)clip->height, (long long)clip->width);
    av_log_set_level(AV_LOG_ERROR);
    bool ok = open_writer(&w, clip, fps, e) && encode_clip(&w, clip, e);
    int n = close_writer(&w, &bytes);
    ok = ok && write_whole(path, bytes, (size_t)n, e);
    av_free(bytes);
    return ok;
}

/* ---- contact sheets ---------------------------------------------------------------------------
 */

enum { GAP = 2 }; /* white pixels between pictures */

typedef struct {
    int64_t shown, columns, rows; /* pictures */
    int64_t shrink;               /* pixels a side that become one */
    int64_t height, width;        /* of a shrunk picture */
    int64_t sheet_height, sheet_width;
} Sheet;

static Sheet sheet_of(const Clip8 *clip) {
    Sheet s = {.shown = MIN(clip->frames, SHEET_FRAMES)};
    s.columns = MIN(s.shown, SHEET_COLUMNS);
    s.rows = (s.shown + s.columns - 1) / s.columns;
    s.shrink = MAX(1, (s.columns * clip->width + SHEET_WIDTH - 1) / SHEET_WIDTH);
    s.height = MAX(1, clip->height / s.shrink);
    s.width = MAX(1, clip->width / s.shrink);
    s.sheet_height = s.rows * (s.height + GAP) - GAP;
    s.sheet_width = s.columns * (s.width + GAP) - GAP;
    return s;
}

/* The mean of the pixels that become pixel (y, x). */
static void shrink_pixel(const Clip8 *clip, const Sheet *s, int64_t frame, int64_t y, int64_t x,
                         uint8_t *to) {
    const uint8_t *from = clip->rgb + frame * clip->height * clip->width * 3;
    int64_t sum[3] = {0}, n = s->shrink * s->shrink;
    for (int64_t i = 0; i < s->shrink; i++)
        for (int64_t j = 0; j < s->shrink; j++)
            for (int c = 0; c < 3; c++)
                sum[c] += from[((y * s->shrink + i) * clip->width + x * s->shrink + j) * 3 + c];
    for (int c = 0; c < 3; c++) to[c] = (uint8_t)((sum[c] + n / 2) / n);
}

static uint8_t *draw_sheet(const Clip8 *clip, const Sheet *s) {
    size_t bytes = (size_t)(s->sheet_height * s->sheet_width * 3);
    uint8_t *rgb = memset(xcalloc(bytes, 1), 255, bytes);
    for (int64_t i = 0; i < s->shown; i++) {
        int64_t frame = s->shown > 1 ? i * (clip->frames - 1) / (s->shown - 1) : 0;
        int64_t top = i / s->columns * (s->height + GAP);
        int64_t left = i % s->columns * (s->width + GAP);
        for (int64_t y = 0; y < s->height; y++)
            for (int64_t x = 0; x < s->width; x++)
                shrink_pixel(clip, s, frame, y, x,
                             rgb + ((top + y) * s->sheet_width + left + x) * 3);
    }
    return rgb;
}

/* One picture through the encoder into *packet. */
static int encode_png(AVCodecContext *c, AVFrame *frame, AVPacket *packet, uint8_t *rgb) {
    c->width = frame->width;
    c->height = frame->height;
    c->pix_fmt = AV_PIX_FMT_RGB24;
    c->time_base = (AVRational){1, 1};
    frame->format = AV_PIX_FMT_RGB24;
    frame->data[0] = rgb;
    frame->linesize[0] = frame->width * 3;
    int code = avcodec_open2(c, NULL, NULL);
    if (code >= 0) code = avcodec_send_frame(c, frame);
    if (code >= 0) code = avcodec_send_frame(c, NULL);
    return code >= 0 ? avcodec_receive_packet(c, packet) : code;
}

bool sheet_write(const char *path, const Clip8 *clip, Error *e) {
    Sheet s = sheet_of(clip);
    const AVCodec *codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
    AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;
    AVFrame *frame = av_frame_alloc();
    AVPacket *packet = av_packet_alloc();
    uint8_t *rgb = draw_sheet(clip, &s);
    int code = c && frame && packet ? 0 : AVERROR_ENCODER_NOT_FOUND;
    av_log_set_level(AV_LOG_ERROR);
    if (!code) {
        frame->width = (int)s.sheet_width;
        frame->height = (int)s.sheet_height;
        code = encode_png(c, frame, packet, rgb);
    }
    bool ok = code >= 0 ? write_whole(path, packet->data, (size_t)packet->size, e)
                        : av_failed(e, path, "png", code);
    av_packet_free(&packet);
    av_frame_free(&frame);
    avcodec_free_context(&c);
    free(rgb);
    return ok;
}
