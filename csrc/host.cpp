#include "host.h"

#include <mutex>

#include "apply.h"
#include "candidates.h"
#include "chunks.h"
#include "keep.h"
#include "magnitude.h"
#include "scores.h"
#include "tiny.h"
#include "walk.h"

namespace lampfast {
namespace {

// Memory for candidates: 3% of the weights' bytes, and what small models need.
constexpr std::int64_t least_budget = tiny ? 256 : 1 << 19;

class Host : public Place {
 public:
  Host(const Job& job, cpu::Team& team) : layers_(job.layers), targets_(job.targets), team_(team) {
    if (job.writes_masks()) masks_ = &job.targets;
    std::int64_t bytes = 0;
    for (const Layer& layer : layers_) {
      if (layer.device == Layer::in_host_memory) bytes += layer.size * item_size(layer.dtype);
    }
    budget_ = std::make_shared<CandidateBudget>(least_budget + bytes / 100 * 3);
  }

  void find_scales(const Chosen& chosen, std::vector<double>& scales) override {
    lampfast::find_scales(layers_, chosen, scales, team_);
  }

  void start_sketches(const Chosen&) override {}
  void finish_sketches(const Chosen& chosen, std::vector<Sketch>& sketches) override {
    team_.for_each(static_cast<std::int64_t>(chosen.size()), Team::least_parallel_size,
                   [&](std::int64_t c, int) {
                     const std::size_t i = chosen[static_cast<std::size_t>(c)];
                     sketches[i] = draw_sketch(layers_[i]);
                   });
  }

  void start_survey(const Chosen&, std::vector<Survey>&, bool limited) override {
    limited_ = limited;
  }
  void finish_survey(const Chosen& chosen, std::vector<Survey>& surveys) override {
    const auto budget =
        limited_ ? budget_ : std::make_shared<CandidateBudget>(CandidateBudget::no_limit);
    survey_weights(layers_, masks_ == nullptr ? std::vector<Layer>{} : *masks_, chosen, surveys,
                   budget, team_);
  }
  void survey_candidates(const Chosen& chosen, const std::vector<Bracket>& brackets,
                         std::vector<Survey>& surveys) override {
    lampfast::survey_candidates(layers_, chosen, brackets, surveys, team_);
  }

  void fetch_candidates(const Chosen&, const std::vector<Survey>&) override {}
  std::vector<std::uint64_t> candidate_keys(std::size_t layer, const Survey& survey) override {
    return lampfast::candidate_keys(layers_[layer], survey);
  }

  Natural exact_sum_above(std::size_t i, std::uint64_t above) override {
    const Layer& layer = layers_[i];
    Natural sum;
    std::mutex mutex;
    for_each_chunk({{i, 0, layer.size}}, team_, [&](const Chunk& chunk, int) {
      with_format(layer.dtype, [&](auto format) {
        using Format = decltype(format);
        using Key = typename Format::Storage;
        const auto* data = reinterpret_cast<const Key*>(layer.data);
        ExactSum<Format> partial;
        Walk<1>(layer.shape, {&layer.strides}, Order::memory)
            .runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
              for (std::int64_t j = 0; j < length; ++j) {
                const Key key = Format::key(data[offsets[0] + j]);
                if (key > above) partial.add_square(key);
              }
            });
        const Natural total = partial.total();
        const std::lock_guard<std::mutex> lock(mutex);
        sum += total;
      });
    });
    return sum;
  }

  void prepare_apply(const Chosen&, const std::vector<Cut>&, const std::vector<Survey>&) override {}
  void apply(const Chosen& chosen, const std::vector<Cut>& cuts,
             const std::vector<Survey>& surveys) override {
    (masks_ != nullptr ? mask : zero)(layers_, targets_, chosen, cuts, surveys, team_);
  }

  void census(const Chosen& chosen, std::vector<Cut>& cuts) override {
    lampfast::census(layers_, chosen, cuts, team_);
  }
  std::optional<Element> first_not_finite(const Chosen& chosen) override {
    return lampfast::first_not_finite(layers_, chosen, team_);
  }
  void score(const Chosen& chosen) override { lampfast::score(layers_, targets_, chosen, team_); }

  void pack(const Chosen& chosen, const PackedMasks& masks) override {
    lampfast::pack(layers_, chosen, masks, team_);
  }
  void keep(const Chosen& chosen, const PackedMasks& masks) override {
    lampfast::keep(layers_, chosen, masks, team_);
  }

 private:
  using Team = cpu::Team;

  const std::vector<Layer>& layers_;
  const std::vector<Layer>& targets_;
  const std::vector<Layer>* masks_ = nullptr;
  Team& team_;
  std::shared_ptr<CandidateBudget> budget_;
  bool limited_ = true;
};

}  // namespace

std::unique_ptr<Place> host_place(const Job& job, cpu::Team& team) {
  return std::make_unique<Host>(job, team);
}

}  // namespace lampfast
