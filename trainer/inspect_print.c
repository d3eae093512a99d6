/* Owns the tables of `inspect`: a report as text for people. */
#include "trainer/inspect.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { INDENT = 16, METADATA_CHARS = 100 };

static const char *text(const json_t *report, const char *key) {
    const char *s = json_string_value(json_object_get(report, key));
    return s ? s : "unknown";
}

static long long whole(const json_t *report, const char *key) {
    return (long long)json_integer_value(json_object_get(report, key));
}

static double number(const json_t *report, const char *key) {
    return json_number_value(json_object_get(report, key));
}

/* "3.2 GiB" */
static void print_bytes(double bytes) {
    static const char *const UNITS[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit + 1 < COUNT(UNITS); unit++) bytes /= 1024;
    printf(unit ? "%.1f %s" : "%.0f %s", bytes, UNITS[unit]);
}

/* A file's text, without what a terminal could obey. */
static void print_safe(const char *s, size_t most) {
    for (size_t i = 0; s[i] && i < most; i++) putchar(is_control(s + i) ? '?' : s[i]);
    if (strlen(s) > most) printf("... (%zu bytes)", strlen(s));
}

/* "736 tensors, 1693783872 parameters, F16, 3.2 GiB in 2 files, no digest" */
static void print_weights(const json_t *report) {
    const json_t *shards = json_object_get(report, "shards");
    if (!json_array_size(shards)) {
        printf("no weights\n");
        return;
    }
    printf("%lld tensors, %lld parameters, ", whole(report, "tensors"),
           whole(report, "parameters"));
    const char *dtype;
    json_t *n;
    json_t *dtypes = json_object_get(report, "dtypes");
    json_object_foreach(dtypes, dtype, n) {
        if (json_object_size(dtypes) > 1) printf("%lld of ", (long long)json_integer_value(n));
        printf("%s, ", dtype);
    }
    print_bytes(number(report, "bytes"));
    size_t files = json_array_size(shards), digests = 0, i;
    json_t *shard;
    json_array_foreach(shards, i, shard) digests += !strcmp(text(shard, "digest"), "verified");
    printf(" in %zu %s, ", files, files == 1 ? "file" : "files");
    if (!digests)
        printf("no digest\n");
    else if (digests == files)
        printf("digest verified\n");
    else
        printf("%zu digests verified, %zu without\n", digests, files - digests);
}

static void print_transformer(const json_t *r, int indent) {
    const json_t *s = json_object_get(r, "sizes");
    const json_t *video = json_object_get(s, "native_video");
    const json_t *latents = json_object_get(s, "native_latents");
#define AT(list, i) (long long)json_integer_value(json_array_get(list, i))
    printf("%s, %s, %s positions\n", text(r, "variant"), text(r, "task"), text(r, "positions"));
    printf("%*s%lld layers, %lld heads of %lld: width %lld; channels %lld in, %lld out\n", indent,
           "", whole(s, "layers"), whole(s, "heads"), whole(s, "head_size"), whole(s, "width"),
           whole(s, "in_channels"), whole(s, "out_channels"));
    printf("%*stime width %lld; text %lld x %lld; patch %lld x %lld", indent, "",
           whole(s, "time_embed_dim"), whole(s, "max_text_seq_length"), whole(s, "text_embed_dim"),
           whole(s, "patch_size"), whole(s, "patch_size"));
    if (whole(s, "patch_size_t")) printf(" x %lld frames", whole(s, "patch_size_t"));
    if (whole(s, "ofs_embed_dim")) printf("; ofs embedding %lld", whole(s, "ofs_embed_dim"));
    printf(
        "\n%*snative video %lld x %lld x %lld: latents %lld x %lld x %lld, %lld rows with text\n",
        indent, "", AT(video, 0), AT(video, 1), AT(video, 2), AT(latents, 0), AT(latents, 1),
        AT(latents, 2), whole(s, "native_rows"));
#undef AT
    printf("%*s", indent, "");
    print_weights(r);
}

/* What follows the name or path of a component. */
static void print_component(const json_t *r, int indent) {
    const char *kind = text(r, "kind");
    if (json_is_false(json_object_get(r, "present"))) {
        print_safe(text(r, "class"), METADATA_CHARS);
        printf(": not there\n");
    } else if (!strcmp(kind, "transformer")) {
        print_transformer(r, indent);
    } else if (!strcmp(kind, "tokenizer")) {
        print_safe(text(r, "class"), METADATA_CHARS);
        printf(", ");
        if (!json_is_integer(json_object_get(r, "vocabulary_bytes")))
            printf("no spiece.model\n");
        else
            printf("spiece.model of %lld bytes\n", whole(r, "vocabulary_bytes"));
    } else if (!strcmp(kind, "scheduler")) {
        print_safe(text(r, "class"), METADATA_CHARS);
        if (json_object_get(r, "prediction"))
            printf(", %s, betas %g to %g, SNR shift %g, %s terminal SNR", text(r, "prediction"),
                   number(r, "beta_start"), number(r, "beta_end"), number(r, "snr_shift_scale"),
                   json_is_true(json_object_get(r, "zero_terminal_snr")) ? "zero" : "nonzero");
        printf("\n");
    } else {
        print_safe(text(r, "class"), METADATA_CHARS);
        printf(": ");
        print_weights(r);
    }
}

static void print_model(const json_t *report) {
    const json_t *list = json_object_get(report, "components");
    const json_t *class = json_object_get(report, "class");
    json_t *part;
    size_t i;
    printf("model folder, ");
    print_safe(json_is_string(class) ? json_string_value(class) : "without model_index.json",
               METADATA_CHARS);
    putchar('\n');
    json_array_foreach(list, i, part) {
        printf("  %-*s", INDENT - 2, text(part, "name"));
        print_component(part, INDENT);
    }
}

static void print_shared(const json_t *kind, const char *key, const char *format) {
    const json_t *value = json_object_get(kind, key);
    if (json_is_null(value))
        printf("  %7s", "various");
    else
        printf(format, json_number_value(value));
}

static void print_adapter(const json_t *report) {
    const json_t *kinds = json_object_get(report, "kinds");
    const json_t *from = json_object_get(report, "alpha_from");
    json_t *kind;
    size_t i;
    printf("adapter, names as in %s; alpha from %s\n  ", text(report, "names"),
           json_is_string(from) ? json_string_value(from)
                                : "nowhere: the rank is taken, as diffusers does");
    print_weights(report);
    printf("  %-32s  %6s  %7s  %7s  %7s  %-5s  %s\n", "module", "layers", "rank", "alpha", "scale",
           "dtype", "norm of B A");
    json_array_foreach(kinds, i, kind) {
        const json_t *dtype = json_object_get(kind, "dtype");
        printf("  %-32s  %6lld", text(kind, "kind"), whole(kind, "layers"));
        print_shared(kind, "rank", "  %7.0f");
        print_shared(kind, "alpha", "  %7g");
        print_shared(kind, "scale", "  %7g");
        printf("  %-5s", json_is_string(dtype) ? json_string_value(dtype) : "various");
        printf("  %.4g", number(kind, "norm_least"));
        if (whole(kind, "layers") > 1) printf(" to %.4g", number(kind, "norm_most"));
        printf("\n");
    }
}

static void print_tensors(const json_t *report) {
    json_t *list = json_object_get(report, "tensor_list"), *t, *size, *value;
    const char *key;
    size_t i, k;
    int width = 4;
    json_array_foreach(list, i, t) width = MAX(width, (int)strlen(text(t, "name")));
    print_weights(report);
    json_object_foreach(json_object_get(report, "metadata"), key, value) {
        printf("  metadata ");
        print_safe(key, METADATA_CHARS);
        printf(": ");
        print_safe(json_string_value(value), METADATA_CHARS);
        printf("\n");
    }
    json_array_foreach(list, i, t) {
        printf("  %-*s  %-11s %12lld bytes  [", MIN(width, 80), text(t, "name"), text(t, "dtype"),
               whole(t, "bytes"));
        json_array_foreach(json_object_get(t, "shape"), k, size)
            printf(k ? ", %lld" : "%lld", (long long)json_integer_value(size));
        printf("]\n");
    }
}

static void print_cache(const json_t *report) {
    json_t *group, *size, *entry;
    size_t i, k;
    printf("cache, %lld bytes\n", whole(report, "bytes"));
    json_array_foreach(json_object_get(report, "groups"), i, group) {
        printf("  %-9s  %6lld of [", text(group, "kind"), whole(group, "entries"));
        json_array_foreach(json_object_get(group, "shape"), k, size)
            printf(k ? ", %lld" : "%lld", (long long)json_integer_value(size));
        printf("], %lld bytes\n", whole(group, "bytes"));
    }
    json_array_foreach(json_object_get(report, "entry_list"), i, entry) {
        const json_t *source = json_object_get(entry, "source");
        const json_t *caption = json_object_get(entry, "caption");
        printf("  %s", text(entry, "key"));
        if (json_object_get(entry, "frames"))
            printf("  frames %lld+%lld", whole(entry, "first_frame"), whole(entry, "frames"));
        if (json_object_get(entry, "variant")) printf("  variant %lld", whole(entry, "variant"));
        if (source) printf("  ");
        if (source) print_safe(json_string_value(source), METADATA_CHARS);
        if (caption) printf("  \"");
        if (caption) print_safe(json_string_value(caption), METADATA_CHARS);
        printf(caption ? "\"\n" : "\n");
    }
}

static void print_checkpoint(const json_t *report) {
    printf("checkpoint after step %lld, %lld samples (%lld a step, ranks %lld, ZeRO %lld); every "
           "file verified\n",
           whole(report, "step"), whole(report, "samples"), whole(report, "global_batch"),
           whole(report, "world"), whole(report, "zero"));
}

static void print_run(const json_t *report) {
    const json_t *list = json_object_get(report, "checkpoints");
    json_t *one;
    size_t i;
    printf("run, %zu checkpoints%s\n", json_array_size(list),
           json_object_get(report, "result") ? ", finished" : "");
    json_array_foreach(list, i, one) {
        printf("  ");
        print_safe(text(one, "path"), SIZE_MAX);
        printf(": ");
        print_checkpoint(one);
    }
}

static void print_what_it_is(const json_t *report) {
    const char *kind = text(report, "kind");
    if (!strcmp(kind, "model"))
        print_model(report);
    else if (!strcmp(kind, "adapter"))
        print_adapter(report);
    else if (!strcmp(kind, "cache"))
        print_cache(report);
    else if (!strcmp(kind, "tensors"))
        print_tensors(report);
    else if (!strcmp(kind, "checkpoint"))
        print_checkpoint(report);
    else if (!strcmp(kind, "run"))
        print_run(report);
    else {
        printf("%s\n  ", kind);
        print_component(report, 2);
    }
}

void inspect_print(const json_t *report) {
    const json_t *result = json_object_get(report, "result");
    print_safe(text(report, "path"), SIZE_MAX);
    printf(": ");
    print_what_it_is(report);
    if (json_object_get(report, "digests"))
        printf("  digests.json: %lld files verified\n", whole(report, "digests"));
    if (result) inspect_print(result);
}
