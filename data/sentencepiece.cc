/* Owns the calls of the SentencePiece library; no exception leaves this file. */
extern "C" {
#include "data/sentencepiece.h"
}

#include <exception>
#include <sentencepiece_processor.h>
#include <string>
#include <vector>

struct SentencePiece {
    sentencepiece::SentencePieceProcessor processor;
};

extern "C" SentencePiece *sentencepiece_open(const void *model, size_t n, const char *path,
                                             Error *e) {
    SentencePiece *s = nullptr;
    std::string why;
    try {
        s = new SentencePiece;
        auto status = s->processor.LoadFromSerializedProto(
            absl::string_view(static_cast<const char *>(model), n));
        if (status.ok()) return s;
        why = status.ToString();
    } catch (const std::exception &failure) {
        why = failure.what();
    }
    delete s;
    error_set(e, EXIT_USER, "%.300s: SentencePiece cannot read it: %.300s. Download it again.",
              path, why.c_str());
    return nullptr;
}

extern "C" void sentencepiece_close(SentencePiece *s) { delete s; }

extern "C" int64_t sentencepiece_count(const SentencePiece *s) {
    return s->processor.GetPieceSize();
}

extern "C" int64_t sentencepiece_id(const SentencePiece *s, const char *piece) {
    int id = s->processor.PieceToId(piece);
    return s->processor.IdToPiece(id) == piece ? id : -1;
}

extern "C" bool sentencepiece_encode(const SentencePiece *s, const char *text, size_t n,
                                     int64_t **ids, size_t *count, Error *e) {
    std::string why;
    try {
        std::vector<int> found;
        auto status = s->processor.Encode(absl::string_view(text, n), &found);
        if (status.ok()) {
            *count = found.size();
            *ids = static_cast<int64_t *>(xcalloc(found.size(), sizeof **ids));
            for (size_t i = 0; i < found.size(); i++) (*ids)[i] = found[i];
            return true;
        }
        why = status.ToString();
    } catch (const std::exception &failure) {
        why = failure.what();
    }
    return error_set(e, EXIT_DATA, "SentencePiece cannot encode the text: %.300s", why.c_str());
}
