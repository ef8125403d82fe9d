// Does what a bundle's manifest says of images: prepare MANIFEST.json OUT.f32 IMAGE...
//
// An image is a binary PGM, PPM or PAM file (P5, P6, P7: grey or colours, with alpha or without, 8 bits; grey of 16 bits too), as any
// decoder writes them. OUT.f32 is what predict takes: float32 (N, C, H, W), the same bits as `bundle.preprocessing(image)`
// in Python. Exit codes: 0 fine, 2 for a file that cannot be used or whose picture depends on a key that is not stated.

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <sstream>

#include "json.h"
#include "resize.h"

namespace {

struct Settings {
  int height = 0, width = 0, bits = 0, padding = 0;  // bits: 0 where the manifest states none
  std::string mode = "RGB", channels = "RGB", interpolation = "bilinear", resize = "stretch";
  std::vector<float> mean, std;
  std::vector<int> background;  // red, green, blue; empty where the manifest states none
};

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path + " cannot be read; check the path.");
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

template <typename Number>
std::vector<Number> numbers(const Json& value) {
  std::vector<Number> found;
  for (const Json& item : value.items) {
    found.push_back(static_cast<Number>(item.number));
  }
  return found;
}

Settings settings_of(const std::string& path) {
  const std::string text = text_of(path);
  const Json manifest = JsonReader(text).read();
  if (const auto several = manifest.members.find("inputs");
      several != manifest.members.end() && !several->second.members.empty()) {
    throw std::runtime_error(path + " is of a network with several inputs, and this program prepares one image.");
  }
  const auto part = manifest.members.find("preprocessing");
  if (part == manifest.members.end()) {
    throw std::runtime_error(path + " has no preprocessing; name the manifest.json of a bundle.");
  }
  Settings found;
  for (const auto& [key, value] : part->second.members) {
    if (key == "size" && value.items.size() == 2) {
      found.height = static_cast<int>(value.items[0].number);
      found.width = static_cast<int>(value.items[1].number);
    } else if (key == "mode") {
      found.mode = value.text;
    } else if (key == "mean") {
      found.mean = numbers<float>(value);
    } else if (key == "std") {
      found.std = numbers<float>(value);
    } else if (key == "interpolation") {
      found.interpolation = value.text;
    } else if (key == "resize") {
      found.resize = value.text;
    } else if (key == "channels") {
      found.channels = value.text;
    } else if (key == "background") {
      found.background = numbers<int>(value);
    } else if (key == "bits") {
      found.bits = static_cast<int>(value.number);
    } else if (key == "padding") {
      found.padding = static_cast<int>(value.number);
    } else {
      throw std::runtime_error(path + " says '" + key + "' of the preprocessing, which this program does not know.");
    }
  }
  const size_t channels = found.mode == "L" ? 1 : 3;
  if (found.height < 1 || found.width < 1 || found.mean.size() != channels || found.std.size() != channels) {
    throw std::runtime_error(path + " does not state size, mean and std of each channel; make the bundle again.");
  }
  return found;
}

struct Header {
  int width = 0, height = 0, channels = 0, most = 0;
  size_t start = 0;  // of the pixels
};

Header header_of(const std::string& file, const std::string& path) {
  std::istringstream stream(file);
  std::string kind, word;
  Header found;
  stream >> kind;
  if (kind == "P7") {
    while (stream >> word && word != "ENDHDR") {
      if (word == "WIDTH") {
        stream >> found.width;
      } else if (word == "HEIGHT") {
        stream >> found.height;
      } else if (word == "DEPTH") {
        stream >> found.channels;
      } else if (word == "MAXVAL") {
        stream >> found.most;
      } else {
        stream >> word;  // TUPLTYPE follows from DEPTH
      }
    }
  } else if (kind == "P5" || kind == "P6") {
    found.channels = kind == "P5" ? 1 : 3;
    stream >> found.width >> found.height >> found.most;
  }
  if (!stream || found.width < 1 || found.height < 1 || found.channels < 1 || found.channels > 4) {
    throw std::runtime_error(path + " is no binary PGM, PPM or PAM file; convert it.");
  }
  found.start = static_cast<size_t>(stream.tellg()) + 1;
  const size_t each = found.most > 255 ? 2 : 1;
  if (file.size() < found.start + each * found.width * found.height * found.channels) {
    throw std::runtime_error(path + " is cut off; replace the file.");
  }
  return found;
}

// Grey of 16 bits by its upper 8 of those that hold the picture.
void scale(const std::string& file, const Header& head, int bits, const std::string& path, Pixels& pixels) {
  if (head.most != 65535 || head.channels != 1) {
    throw std::runtime_error(path + " has pixels that are neither of 8 bits nor grey of 16; convert it to 8 bits.");
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(file.data()) + head.start;
  int most = 0;
  for (size_t i = 0; i < pixels.data.size(); ++i) {
    const int value = bytes[2 * i] << 8 | bytes[2 * i + 1];
    most = std::max(most, value);
    pixels.data[i] = static_cast<uint8_t>(value >> ((bits ? bits : 16) - 8));
  }
  if (!bits && most > 0 && most < 4096) {
    throw std::runtime_error(path + " holds numbers below 4096 in 16 bits: state preprocessing.bits, 12 or 16.");
  }
  if (bits && most >= 1 << bits) {
    throw std::runtime_error(path + " holds " + std::to_string(most) + ", which " + std::to_string(bits) + " bits cannot.");
  }
}

// What is transparent shows the background; the alpha channel is the last one.
Pixels opaque(const Pixels& image, const std::vector<int>& background, const std::string& path) {
  if (image.channels % 2 == 1) {
    return image;
  }
  const int colours = image.channels - 1;
  bool clear = false;
  for (size_t i = colours; i < image.data.size(); i += image.channels) {
    clear = clear || image.data[i] != 255;
  }
  if (clear && background.size() != 3) {
    throw std::runtime_error(path + " has transparent pixels, and the preprocessing states no background.");
  }
  Pixels found = blank(image.width, image.height, clear ? 3 : colours);
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      const int alpha = image.at(y, x, colours);
      for (int c = 0; c < found.channels; ++c) {
        const int own = image.at(y, x, std::min(c, colours - 1)), behind = clear ? background[c] : 0;
        const uint32_t sum = own * alpha * 128u + behind * (255u - alpha) * 128u + (0x80u << 7);
        found.at(y, x, c) = static_cast<uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
      }
    }
  }
  return found;
}

// Grey or three colours, as the network reads them.
Pixels in_mode(const Pixels& image, bool grey) {
  if ((image.channels == 1) == grey) {
    return image;
  }
  Pixels found = blank(image.width, image.height, grey ? 1 : 3);
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      for (int c = 0; c < found.channels; ++c) {
        found.at(y, x, c) = !grey ? image.at(y, x, 0)
                                  : static_cast<uint8_t>((image.at(y, x, 0) * 19595 + image.at(y, x, 1) * 38470 +
                                                          image.at(y, x, 2) * 7471 + 0x8000) >>
                                                         16);
      }
    }
  }
  return found;
}

Pixels fitted(const Pixels& image, const Settings& how) {
  const double high = image.height, wide = image.width;
  if (how.resize == "letterbox") {
    const double scale = std::min(how.width / wide, how.height / high);
    const int width = std::clamp<int>(std::nearbyint(wide * scale), 1, how.width);
    const int height = std::clamp<int>(std::nearbyint(high * scale), 1, how.height);
    const Pixels inner = resized(image, width, height, {0, 0, wide, high}, how.interpolation);
    Pixels found = blank(how.width, how.height, image.channels, static_cast<uint8_t>(how.padding));
    const int left = (how.width - width) / 2, top = (how.height - height) / 2;
    for (int y = 0; y < height; ++y) {
      std::memcpy(&found.at(top + y, left, 0), &inner.data[static_cast<size_t>(y) * width * image.channels],
                  static_cast<size_t>(width) * image.channels);
    }
    return found;
  }
  if (how.resize == "stretch") {
    return resized(image, how.width, how.height, {0, 0, wide, high}, how.interpolation);
  }
  if (how.resize != "shorter_side_center_crop") {
    throw std::runtime_error("There is no resize " + how.resize + ".");
  }
  const double scale = std::min(wide / how.width, high / how.height);
  const double left = (wide - how.width * scale) / 2, top = (high - how.height * scale) / 2;
  // Pillow keeps the edges in single precision.
  const auto single = [](double edge) { return static_cast<double>(static_cast<float>(edge)); };
  const Box box{single(std::max(left, 0.0)), single(std::max(top, 0.0)),
                single(std::min(left + how.width * scale, wide)), single(std::min(top + how.height * scale, high))};
  return resized(image, how.width, how.height, box, how.interpolation);
}

std::vector<float> prepared(const std::string& path, const Settings& how) {
  const std::string file = text_of(path);
  const Header head = header_of(file, path);
  Pixels image = blank(head.width, head.height, head.channels);
  if (head.most == 255) {
    std::memcpy(image.data.data(), file.data() + head.start, image.data.size());
  } else {
    scale(file, head, how.bits, path, image);
  }
  const Pixels found = fitted(in_mode(opaque(image, how.background, path), how.mode == "L"), how);
  std::vector<float> values;
  for (int c = 0; c < found.channels; ++c) {
    const int from = how.channels == "BGR" ? found.channels - 1 - c : c;
    for (int y = 0; y < found.height; ++y) {
      for (int x = 0; x < found.width; ++x) {
        values.push_back((found.at(y, x, from) / 255.0f - how.mean[c]) / how.std[c]);
      }
    }
  }
  return values;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: prepare MANIFEST.json OUT.f32 IMAGE...\n");
    return 2;
  }
  try {
    const Settings how = settings_of(arguments[1]);
    std::vector<float> all;
    for (int i = 3; i < count; ++i) {
      const std::vector<float> one = prepared(arguments[i], how);
      all.insert(all.end(), one.begin(), one.end());
    }
    std::ofstream out(arguments[2], std::ios::binary);
    out.write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size() * sizeof(float)));
    if (!out) {
      throw std::runtime_error(std::string(arguments[2]) + " cannot be written.");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "prepare: %s\n", error.what());
    return 2;
  }
  return 0;
}
