// Resizes 8-bit pixels as Pillow does, to the bit: a filter that widens with the scale, 22 bits of fixed point, rounding to
// 8 bits after each direction. Nearest takes the pixel under the middle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

struct Pixels {
  int width = 0, height = 0, channels = 0;
  std::vector<uint8_t> data;  // rows of pixels of channels
  uint8_t& at(int y, int x, int c) { return data[(static_cast<size_t>(y) * width + x) * channels + c]; }
  uint8_t at(int y, int x, int c) const { return data[(static_cast<size_t>(y) * width + x) * channels + c]; }
};

inline Pixels blank(int width, int height, int channels, uint8_t level = 0) {
  return {width, height, channels, std::vector<uint8_t>(static_cast<size_t>(width) * height * channels, level)};
}

struct Filter {
  double support;
  double (*weight)(double);
};

inline double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * M_PI) / (x * M_PI); }

inline Filter filter_of(const std::string& name) {
  if (name == "box") {
    return {0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }};
  }
  if (name == "bilinear") {
    return {1.0, [](double x) { return std::max(0.0, 1.0 - std::fabs(x)); }};
  }
  if (name == "hamming") {
    return {1.0, [](double x) {
              x = std::fabs(x);
              return x == 0.0 ? 1.0 : x >= 1.0 ? 0.0 : sinc(x) * (0.54 + 0.46 * std::cos(x * M_PI));
            }};
  }
  if (name == "bicubic") {
    return {2.0, [](double x) {
              x = std::fabs(x);
              const double a = -0.5;
              return x < 1.0   ? ((a + 2.0) * x - (a + 3.0)) * x * x + 1
                     : x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a
                               : 0.0;
            }};
  }
  if (name == "lanczos") {
    return {3.0, [](double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }};
  }
  throw std::runtime_error("There is no interpolation " + name + ".");
}

// How long a side of a box is: Pillow keeps its edges in single precision and subtracts them so.
inline double length(double from, double to) { return static_cast<float>(to) - static_cast<float>(from); }

// One direction: along rows where `across`, else along columns; `from` and `to` are its edges in source pixels.
inline Pixels resized_along(const Pixels& source, bool across, int size, double from, double to, const Filter& filter) {
  const int have = across ? source.width : source.height;
  const double scale = length(from, to) / size, wide = std::max(scale, 1.0), support = filter.support * wide;
  Pixels found = across ? blank(size, source.height, source.channels) : blank(source.width, size, source.channels);
  for (int place = 0; place < size; ++place) {
    const double middle = from + (place + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(middle - support + 0.5));
    const int last = std::min(have, static_cast<int>(middle + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int k = first; k < last; ++k) {
      weights.push_back(filter.weight((k - middle + 0.5) * (1.0 / wide)));
      sum += weights.back();
    }
    std::vector<int64_t> fixed;
    for (double weight : weights) {
      const double share = (sum == 0 ? weight : weight / sum) * (1 << 22);
      fixed.push_back(static_cast<int64_t>(share < 0 ? share - 0.5 : share + 0.5));
    }
    const int other = across ? source.height : source.width;
    for (int line = 0; line < other; ++line) {
      for (int c = 0; c < source.channels; ++c) {
        int64_t value = 1 << 21;
        for (int k = first; k < last; ++k) {
          value += fixed[k - first] * (across ? source.at(line, k, c) : source.at(k, line, c));
        }
        const auto level = static_cast<uint8_t>(std::clamp<int64_t>(value >> 22, 0, 255));
        (across ? found.at(line, place, c) : found.at(place, line, c)) = level;
      }
    }
  }
  return found;
}

struct Box {
  double left, top, right, bottom;
};

inline Pixels resized(const Pixels& source, int width, int height, const Box& box, const std::string& interpolation) {
  if (interpolation == "nearest") {
    Pixels found = blank(width, height, source.channels);
    const double across = length(box.left, box.right) / width, down = length(box.top, box.bottom) / height;
    double from_y = box.top + down * 0.5;
    for (int y = 0; y < height; ++y, from_y += down) {
      double from_x = box.left + across * 0.5;
      for (int x = 0; x < width; ++x, from_x += across) {
        for (int c = 0; c < source.channels; ++c) {
          const int row = std::min(static_cast<int>(from_y), source.height - 1);
          found.at(y, x, c) = source.at(row, std::min(static_cast<int>(from_x), source.width - 1), c);
        }
      }
    }
    return found;
  }
  const Filter filter = filter_of(interpolation);
  Pixels found = source;
  if (width != source.width || box.left != 0 || box.right != width) {
    found = resized_along(found, true, width, box.left, box.right, filter);
  }
  if (height != source.height || box.top != 0 || box.bottom != height) {
    found = resized_along(found, false, height, box.top, box.bottom, filter);
  }
  return found;
}
