// Runs a bundle's model from C++: predict MODEL.onnx IMAGES.f32
//
// IMAGES.f32 holds prepared images, little-endian float32 (N, C, H, W) without a header: in Python,
// `numpy.stack([bundle.preprocessing(image) for image in images]).tofile("images.f32")`; a program with its own decoder
// does what the manifest's `preprocessing` says, as prepare.cpp shows. Each output is printed as its name and shape, then
// a row an image.
// Exit codes: 0 fine, 2 for a file that cannot be used.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<char> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path + " cannot be read; check the path.");
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The images as a tensor of the shape that the model asks for; their number follows from the file's size.
ov::Tensor images_of(const std::string& path, const ov::Output<const ov::Node>& input) {
  const ov::PartialShape wanted = input.get_partial_shape();
  if (input.get_element_type() != ov::element::f32 || wanted.rank().is_dynamic()) {
    throw std::runtime_error("The model does not take float32 images of a fixed rank.");
  }
  ov::Shape shape{1};
  size_t one = sizeof(float);
  for (size_t axis = 1; axis < wanted.size(); ++axis) {
    if (wanted[axis].is_dynamic()) {
      throw std::runtime_error("The model leaves the size of its images open; export it with a fixed size.");
    }
    shape.push_back(wanted[axis].get_length());
    one *= shape.back();
  }
  const std::vector<char> bytes = bytes_of(path);
  if (bytes.empty() || bytes.size() % one != 0) {
    throw std::runtime_error(path + " has " + std::to_string(bytes.size()) + " bytes, which is no multiple of the " +
                             std::to_string(one) + " of one image.");
  }
  shape[0] = bytes.size() / one;
  ov::Tensor tensor(ov::element::f32, shape);
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.data()));
  return tensor;
}

void print(const std::string& name, const ov::Tensor& values) {
  const ov::Shape shape = values.get_shape();
  std::printf("%s", name.c_str());
  for (const size_t size : shape) {
    std::printf(" %zu", size);
  }
  std::printf("\n");
  const float* value = values.data<const float>();
  const size_t row = values.get_size() / shape[0];
  for (size_t i = 0; i < values.get_size(); ++i) {
    // Nine digits tell any two float32 apart.
    std::printf("%.9g%c", value[i], (i + 1) % row == 0 ? '\n' : ' ');
  }
}

void run(const std::string& model, const std::string& images) {
  ov::Core core;
  // Left alone OpenVINO computes in bf16 where the CPU has it, which is not what the file says. One thread is what
  // deploy.load() takes too; another number sums in another order, which can move an int8 value by a step.
  ov::CompiledModel compiled = core.compile_model(model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                                  ov::hint::inference_precision(ov::element::f32),
                                                  ov::inference_num_threads(1));
  ov::InferRequest request = compiled.create_infer_request();
  request.set_input_tensor(images_of(images, compiled.input()));
  request.infer();
  for (const auto& output : compiled.outputs()) {
    print(output.get_any_name(), request.get_tensor(output));
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: predict MODEL.onnx IMAGES.f32\n");
    return 2;
  }
  try {
    run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "predict: %s\n", error.what());
    return 2;
  }
  return 0;
}
