// Sums and maxima of integers are the same in any order; sums of squares are sent in fixed point.
#include "exchange_tiles.h"

namespace lampfast {

void TileExchange::add(std::vector<std::int64_t>& counts, std::vector<RangedSum>& sums) {
  if (is_alone()) return;
  Hash question;
  question.add(std::uint64_t{counts.size()});
  for (const RangedSum& sum : sums) question.add(std::ldexp(1.0, sum.least));
  // The first word is less than 2^32 (communicator.h), and the second the same on all ranks.
  Words words = {0, static_cast<std::int64_t>(question.value())};
  words.insert(words.end(), counts.begin(), counts.end());
  for (const RangedSum& sum : sums) FixedPoint(sum.least, sum.most).put(sum.value, words);
  communicator_->sum(words);
  check_question(words[1], question.value(), communicator_->size());
  const std::int64_t* from = words.data() + 2;
  for (std::int64_t& count : counts) count = *from++;
  for (RangedSum& sum : sums) sum.value = FixedPoint(sum.least, sum.most).get(from);
}

void TileExchange::add(std::vector<std::int64_t>& counts) {
  std::vector<RangedSum> none;
  add(counts, none);
}

void TileExchange::max(std::vector<std::int64_t>& numbers) {
  if (is_alone()) return;
  numbers.insert(numbers.begin(), 0);  // less than 2^32 (communicator.h)
  communicator_->max(numbers);
  numbers.erase(numbers.begin());
}

std::vector<Words> TileExchange::gather(const Words& own, std::size_t expected) {
  std::vector<Words> all;
  for (const std::string& bytes :
       communicator_->gather(bytes_of(own), expected * sizeof(std::int64_t))) {
    all.push_back(words_of(bytes));
  }
  return all;
}

}  // namespace lampfast
