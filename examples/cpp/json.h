// Reads the JSON of a manifest: objects, arrays, strings, numbers, true, false, null. Throws std::runtime_error.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  enum Kind { Null, Boolean, Number, Text, Array, Object } kind = Null;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& source) : source_(source) {}

  Json read() {
    Json value = any(0);
    if (next() != '\0') {
      fail("something follows its end");
    }
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] void fail(const char* why) const {
    throw std::runtime_error("The manifest is no JSON at byte " + std::to_string(at_) + ": " + why + ".");
  }

  // The next character that is no blank, without taking it.
  char next() {
    while (at_ < source_.size() && std::string(" \t\r\n").find(source_[at_]) != std::string::npos) {
      ++at_;
    }
    return at_ < source_.size() ? source_[at_] : '\0';
  }

  void take(char wanted) {
    if (next() != wanted) {
      fail("a sign is missing");
    }
    ++at_;
  }

  Json any(int depth) {
    if (depth > kDeepest) {
      fail("it is too deep");
    }
    Json value;
    switch (next()) {
      case '{':
        value.kind = Json::Object;
        many('}', [&] {
          std::string key = string();
          take(':');
          value.members[key] = any(depth + 1);
        });
        return value;
      case '[':
        value.kind = Json::Array;
        many(']', [&] { value.items.push_back(any(depth + 1)); });
        return value;
      case '"':
        value.kind = Json::Text;
        value.text = string();
        return value;
      default:
        return word();
    }
  }

  template <typename Part>
  void many(char end, Part part) {
    ++at_;
    if (next() == end) {
      ++at_;
      return;
    }
    for (;;) {
      part();
      if (next() == end) {
        ++at_;
        return;
      }
      take(',');
    }
  }

  std::string string() {
    take('"');
    std::string found;
    for (; at_ < source_.size() && source_[at_] != '"'; ++at_) {
      if (source_[at_] == '\\' && ++at_ < source_.size() && source_[at_] == 'u') {
        at_ += 4;  // no key or value of the preprocessing needs one
        found += '?';
      } else if (at_ < source_.size()) {
        found += source_[at_];
      }
    }
    take('"');
    return found;
  }

  Json word() {
    Json value;
    for (const char* known : {"null", "true", "false"}) {
      const std::string name = known;
      if (source_.compare(at_, name.size(), name) == 0) {
        at_ += name.size();
        value.kind = name == "null" ? Json::Null : Json::Boolean;
        value.number = name == "true";
        return value;
      }
    }
    char* end = nullptr;
    value.kind = Json::Number;
    value.number = std::strtod(source_.c_str() + at_, &end);
    if (end == source_.c_str() + at_) {
      fail("a value is missing");
    }
    at_ = end - source_.c_str();
    return value;
  }

  const std::string& source_;
  size_t at_ = 0;
};
