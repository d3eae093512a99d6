/* Owns geometry and colours of decoded frames: cover, crop, rotation, matrix, range. */
#include "data/video_scale.h"

#include <libavutil/frame.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <string.h>

static int sign(int32_t v) { return (v > 0) - (v < 0); }

bool orientation_from_matrix(Orientation *o, const int32_t matrix[9]) {
    int32_t a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
    bool straight = a && d && !b && !c, across = b && c && !a && !d;
    *o = (Orientation){sign(a), sign(b), sign(c), sign(d)};
    return straight || across;
}

bool orientation_from_exif(Orientation *o, int exif) {
    static const Orientation EXIF[9] = {
        [1] = {1, 0, 0, 1}, [2] = {-1, 0, 0, 1}, [3] = {-1, 0, 0, -1}, [4] = {1, 0, 0, -1},
        [5] = {0, 1, 1, 0}, [6] = {0, 1, -1, 0}, [7] = {0, -1, -1, 0}, [8] = {0, -1, 1, 0},
    };
    if (exif < 1 || exif > 8) return false;
    *o = EXIF[exif];
    return true;
}

int orientation_degrees(const Orientation *o) {
    if (o->a) return o->d > 0 ? 0 : 180;
    return o->b > 0 ? 90 : 270;
}

/* The wanted size in the stored orientation. */
static void stored_target(const Scaler *s, int64_t *width, int64_t *height) {
    bool across = !s->orientation.a;
    *width = across ? s->height : s->width;
    *height = across ? s->width : s->height;
}

/* The size at which a stored picture, resized evenly, just covers the wanted one; both in the
 * stored orientation. */
static void cover_size(const Scaler *s, int64_t width, int64_t height, double *cover_width,
                       double *cover_height) {
    int64_t w, h;
    stored_target(s, &w, &h);
    double shown_width = (double)width * s->aspect_num / s->aspect_den;
    double scale = fmax((double)w / shown_width, (double)h / (double)height);
    *cover_width = fmax((double)w, round(shown_width * scale));
    *cover_height = fmax((double)h, round((double)height * scale));
}

static bool is_yuvj(int format) {
    return format == AV_PIX_FMT_YUVJ420P || format == AV_PIX_FMT_YUVJ422P ||
           format == AV_PIX_FMT_YUVJ444P || format == AV_PIX_FMT_YUVJ440P ||
           format == AV_PIX_FMT_YUVJ411P;
}

/* Pictures in grey are full range unless they state otherwise, as libswscale has it. */
static bool is_full_range(const AVFrame *f) {
    const AVPixFmtDescriptor *format = av_pix_fmt_desc_get((enum AVPixelFormat)f->format);
    bool grey = format && format->nb_components < 3 && !(format->flags & AV_PIX_FMT_FLAG_PAL);
    if (f->color_range == AVCOL_RANGE_JPEG || is_yuvj(f->format)) return true;
    return grey && f->color_range != AVCOL_RANGE_MPEG;
}

/* The matrix that the file states; where it states none BT.601, as the ffmpeg program has it. */
static int matrix_of(const AVFrame *f) {
    switch (f->colorspace) {
    case AVCOL_SPC_BT709:
        return SWS_CS_ITU709;
    case AVCOL_SPC_FCC:
        return SWS_CS_FCC;
    case AVCOL_SPC_SMPTE240M:
        return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL:
        return SWS_CS_BT2020;
    default:
        return SWS_CS_ITU601;
    }
}

static bool make_context(Scaler *s, const AVFrame *f, int width, int height) {
    const int *source = sws_getCoefficients(matrix_of(f));
    sws_freeContext(s->sws);
    s->sws = sws_alloc_context();
    if (!s->sws) return false;
    av_opt_set_int(s->sws, "srcw", f->width, 0);
    av_opt_set_int(s->sws, "srch", f->height, 0);
    av_opt_set_int(s->sws, "src_format", f->format, 0);
    av_opt_set_int(s->sws, "dstw", width, 0);
    av_opt_set_int(s->sws, "dsth", height, 0);
    av_opt_set_int(s->sws, "dst_format", AV_PIX_FMT_GBRP, 0);
    av_opt_set_int(s->sws, "sws_flags", SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, 0);
    if (sws_init_context(s->sws, NULL, NULL) < 0) return false;
    sws_setColorspaceDetails(s->sws, source, is_full_range(f), source, 1, 0, 1 << 16, 1 << 16);
    return true;
}

/* Whether the scaler was made for frames like this one. */
static bool fits(const Scaler *s, const AVFrame *f) {
    return s->sws && s->source_width == f->width && s->source_height == f->height &&
           s->format == f->format && s->colorspace == (int)f->colorspace &&
           s->full_range == is_full_range(f);
}

/* Makes the scaler ready for frames like this one: a stream may change its size. */
static bool prepare(Scaler *s, const AVFrame *f, Error *e) {
    double width, height;
    if (fits(s, f)) return true;
    cover_size(s, f->width, f->height, &width, &height);
    if (width * height > (double)s->max_pixels)
        return error_set(e, EXIT_DATA,
                         "is %dx%d, too narrow for %lldx%lld: it would grow to %.0fx%.0f. Crop it "
                         "first",
                         f->width, f->height, (long long)s->width, (long long)s->height, width,
                         height);
    av_frame_free(&s->scaled);
    s->scaled = av_frame_alloc();
    if (!s->scaled) return error_set(e, EXIT_DATA, "needs more memory than a file may have");
    s->scaled->width = (int)width;
    s->scaled->height = (int)height;
    s->scaled->format = AV_PIX_FMT_GBRP;
    if (av_frame_get_buffer(s->scaled, 0) < 0)
        return error_set(e, EXIT_DATA, "needs more memory than a file may have");
    if (!make_context(s, f, (int)width, (int)height))
        return error_set(e, EXIT_DATA, "has pixels of the kind %s, which cannot be resized",
                         av_get_pix_fmt_name((enum AVPixelFormat)f->format));
    s->source_width = f->width;
    s->source_height = f->height;
    s->format = f->format;
    s->colorspace = (int)f->colorspace;
    s->full_range = is_full_range(f);
    return true;
}

/* The centre of a scaled plane, turned upright: plane [H,W]. */
static void place(const Scaler *s, const uint8_t *from, int stride, uint8_t *plane) {
    const Orientation o = s->orientation;
    int64_t width, height;
    stored_target(s, &width, &height);
    from += (s->scaled->height - height) / 2 * stride + (s->scaled->width - width) / 2;
    int64_t step_p = o.a + o.b * s->width, step_q = o.c + o.d * s->width;
    if (o.a + o.c < 0) plane += s->width - 1;
    if (o.b + o.d < 0) plane += (s->height - 1) * s->width;
    for (int64_t q = 0; q < height; q++) {
        const uint8_t *row = from + q * stride;
        uint8_t *to = plane + q * step_q;
        if (step_p == 1)
            memcpy(to, row, (size_t)width);
        else
            for (int64_t p = 0; p < width; p++) to[p * step_p] = row[p];
    }
}

bool scaler_frame(Scaler *s, const AVFrame *f, uint8_t *const planes[3], Error *e) {
    static const int GBR[3] = {2, 0, 1}; /* the planes of red, green and blue */
    if (!prepare(s, f, e)) return false;
    int done = sws_scale(s->sws, (const uint8_t *const *)f->data, f->linesize, 0, f->height,
                         s->scaled->data, s->scaled->linesize);
    if (done != s->scaled->height)
        return error_set(e, EXIT_DATA, "has a frame that cannot be resized");
    for (int i = 0; i < 3; i++)
        place(s, s->scaled->data[GBR[i]], s->scaled->linesize[GBR[i]], planes[i]);
    return true;
}

void scaler_close(Scaler *s) {
    sws_freeContext(s->sws);
    av_frame_free(&s->scaled);
    s->sws = NULL;
}
